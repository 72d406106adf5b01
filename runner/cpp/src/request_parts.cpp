#include "request_parts.h"

#include <algorithm>

#include "canvas.h"
#include "conditioner.h"
#include "request.h"
#include "schedules/specification.h"
#include "text.h"

namespace arforge {
namespace {

// The schedule's canonical text. Throws unless it is one that the model decodes by, from cells that are known or not.
std::string schedule_of(const Request& given, const Bundle& bundle, bool plain) {
  const std::string& name = given.schedule.empty() ? bundle.schedules.front().specification : given.schedule;
  const Specification specification = parse_specification(name);
  require_order(specification, name, bundle.model.order);
  if (!plain) {
    require_keeping(specification, name);
  }
  return canonical_text(specification);
}

// Throws unless ids of prompts and negative ones are there, and as many as there may be.
void check_prompts(const Request& given, const IdsCondition& condition, std::size_t images) {
  check_ids(given.ids, condition.slots, "the ids");
  check_ids(given.negative_ids, condition.slots, "the negative ids");
  if (given.negative_ids.size() > 1 && given.negative_ids.size() != images) {
    throw Error(Code::request, text(given.negative_ids.size(), " negative prompts for ", images,
                                    " images: give one for all, or one an image"));
  }
}

template <class T>
void add(std::vector<T>& list, const std::vector<T>& from, std::int64_t index) {
  if (!from.empty()) {
    list.push_back(from[static_cast<std::size_t>(index)]);
  }
}

template <class T>
void append(std::vector<T>& list, const std::vector<T>& more) {
  list.insert(list.end(), more.begin(), more.end());
}

// The entries of `count` of `images` images from `place` on.
template <class T>
std::vector<T> cut(const std::vector<T>& list, std::int64_t images, std::int64_t place, std::int64_t count) {
  const auto each = static_cast<std::ptrdiff_t>(list.size()) / images;
  return {list.begin() + place * each, list.begin() + (place + count) * each};
}

} // namespace

OwnRequest::OwnRequest(const Request& given, const Bundle& bundle) : request(given) {
  check_asked(given, bundle);
  check_request(given);
  if (given.receive) {
    throw Error(Code::request, "a batcher's results hold their pixels: leave out receive");
  }
  const Sampling sampling = sampling_of(given, bundle.sampler);
  const Canvas canvas = make_canvas(given, bundle.model);
  const std::size_t images = sampling.guidance.size();
  if (const IdsCondition* own = ids_condition(bundle.model)) {
    check_prompts(given, *own, images);
  }
  request.seeds = seeds_of(given);
  request.schedule = schedule_of(given, bundle, canvas.plain());
  request.guidance = sampling.guidance;
  request.temperature = sampling.temperature;
  request.top_k = sampling.top_k;
  request.top_p = sampling.top_p;
  request.greedy = false;
  request.ids = kept(given.ids);
  request.negative_ids = kept(given.negative_ids);
  if (request.negative_ids.size() == 1) {
    request.negative_ids.resize(images, Ids(request.negative_ids.front()));
  }
  for (Features& one : request.features) {
    one.values = features_.emplace_back(one.values, one.values + one.length * one.width).data();
  }
  std::vector<bool> known;
  if (!given.known.empty()) {
    request.known = canvas.tokens;
    std::transform(canvas.tokens.begin(), canvas.tokens.begin() + canvas.cells(), std::back_inserter(known),
                   [](std::int64_t token) { return token != UNKNOWN; });
  }
  const int asked = !given.classes.empty() ? 0 : !given.features.empty() ? 1 : 2;
  kind = {request.schedule,
          asked,
          request.unconditional,
          request.prefill,
          !given.negative_ids.empty(),
          request.known_rows,
          request.known_columns,
          known};
}

std::vector<Ids> OwnRequest::kept(const std::vector<Ids>& given) {
  std::vector<Ids> found;
  found.reserve(given.size());
  for (const Ids& one : given) {
    found.push_back({ids_.emplace_back(one.values, one.values + one.length).data(), one.length});
  }
  return found;
}

Request joined(const std::vector<OneImage>& images) {
  const Request& first = images.front().from.request;
  Request all;
  all.schedule = first.schedule;
  all.unconditional = first.unconditional;
  all.prefill = first.prefill;
  all.known_rows = first.known_rows;
  all.known_columns = first.known_columns;
  all.batch = static_cast<std::int64_t>(images.size());
  for (const auto& [from, index] : images) {
    const Request& one = from.request;
    add(all.classes, one.classes, index);
    add(all.features, one.features, index);
    add(all.ids, one.ids, index);
    add(all.negative_ids, one.negative_ids, index);
    add(all.seeds, one.seeds, index);
    add(all.guidance.values, one.guidance.values, index);
    add(all.temperature.values, one.temperature.values, index);
    add(all.top_k.values, one.top_k.values, index);
    add(all.top_p.values, one.top_p.values, index);
    append(all.known, cut(one.known, static_cast<std::int64_t>(one.seeds.size()), index, 1));
  }
  return all;
}

Result part_of(const Result& result, std::int64_t place, std::int64_t count) {
  Result part;
  part.tokens = cut(result.tokens, result.images, place, count);
  part.pixels = cut(result.pixels, result.images, place, count);
  part.passes = cut(result.passes, result.images, place, count);
  part.images = count;
  part.rows = result.rows;
  part.columns = result.columns;
  part.height = result.height;
  part.width = result.width;
  part.steps = *std::max_element(part.passes.begin(), part.passes.end());
  part.seconds = result.seconds;
  part.image_seconds = result.image_seconds;
  part.condition_seconds = result.condition_seconds;
  part.step_seconds = result.step_seconds;
  part.engine_seconds = result.engine_seconds;
  part.step_widths = result.step_widths;
  part.step_queries = result.step_queries;
  part.prompt_slots = result.prompt_slots;
  part.schedule = result.schedule;
  return part;
}

void append(Result& result, const Result& more) {
  append(result.tokens, more.tokens);
  append(result.pixels, more.pixels);
  append(result.passes, more.passes);
  append(result.step_seconds, more.step_seconds);
  append(result.engine_seconds, more.engine_seconds);
  append(result.step_widths, more.step_widths);
  append(result.step_queries, more.step_queries);
  result.prompt_slots += more.prompt_slots;
  result.schedule = result.schedule.empty() ? more.schedule : result.schedule;
  result.images += more.images;
  result.steps = std::max(result.steps, more.steps);
  result.seconds += more.seconds;
  result.image_seconds += more.image_seconds;
  result.condition_seconds += more.condition_seconds;
}

} // namespace arforge
