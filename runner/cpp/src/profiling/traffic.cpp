#include "profiling/traffic.h"

#include <algorithm>

#include "bundle/files.h"
#include "bundle/json.h"
#include "schedules/visibility.h"
#include "text.h"

namespace arforge {
namespace {

// The identity of an engine, as it was written; null where none is built.
Json identity_of(const Bundle& bundle, const std::string& target, const std::string& precision) {
  for (const BuiltEngine& engine : bundle.engines) {
    if (engine.target == target && engine.precision == precision) {
      const std::filesystem::path path = bundle.root / std::filesystem::u8path(engine.path);
      return parse_json(read_file(path, MAX_JSON, Code::engine), path.string(), Code::engine);
    }
  }
  return Json::object();
}

// The file of weights that an engine reads.
std::string weights_of(const Bundle& bundle, const Json& identity, const std::string& precision) {
  if (const Json own = identity.value("weights", Json()); own.is_string()) {
    return own.get<std::string>();
  }
  for (const std::string& stored : {precision, std::string("fp32")}) { // engines in blocks may read the second
    for (const Graph& graph : bundle.graphs) {
      if (graph.name == bundle.sampler.graph() && graph.precision == stored) {
        return graph.weights;
      }
    }
  }
  throw Error(Code::bundle, text(bundle.root.string(), " has no step graph: export it again"));
}

// Bytes of an entry of the caches, whose type TensorRT's engines name.
std::int64_t cache_entry(const Json& identity, const std::string& precision) {
  const Json types = identity.value("types", Json());
  return types.is_string() ? (types == "float" ? 4 : 2) : static_cast<std::int64_t>(bytes_of(cache_type(precision)));
}

// Of each step of a table, the slots that some input can see.
std::vector<std::int64_t> live_slots(const Plan& plan) {
  Visibility visibility;
  visibility.start(plan.slots);
  std::vector<std::int64_t> live;
  std::vector<std::uint8_t> mask;
  for (const PlannedStep& step : plan.steps) {
    mask.assign(step.ranks.size() * static_cast<std::size_t>(plan.slots), 0);
    visibility.enter(step, plan.slots, plan.zero_slots, mask.data());
    std::int64_t count = 0;
    for (std::size_t slot = 0; slot < static_cast<std::size_t>(plan.slots); slot++) {
      bool seen = false;
      for (std::size_t place = slot; place < mask.size() && !seen; place += static_cast<std::size_t>(plan.slots)) {
        seen = mask[place] != 0;
      }
      count += seen ? 1 : 0;
    }
    live.push_back(count);
  }
  return live;
}

// Inputs that stand behind all images when so much is done.
std::int64_t fed(const Plan& plan, std::int64_t done) {
  if (!plan.line) {
    return done;
  }
  const std::vector<std::int64_t>& steps = plan.line->steps;
  return std::lower_bound(steps.begin(), steps.end(), done) - steps.begin();
}

} // namespace

double Traffic::cache_bytes(const Call& call, std::int64_t rows) const {
  return static_cast<double>(rows * call.live_slots * slot);
}

double Traffic::operations(const Call& call, std::int64_t rows) const {
  const double sum = static_cast<double>(call.width + call.queries);
  return 2.0 * static_cast<double>(weight_count * rows) * (call.queries > 0 ? sum / 2 : sum);
}

Traffic traffic_of(const Bundle& bundle, const std::string& target, const std::string& precision) {
  const ModelFacts& model = bundle.model;
  const std::int64_t table = model.ids() * model.dim;
  const bool wide = precision != "fp16" && precision != "bf16" && model.stored_precision == "fp32";
  const Json identity = identity_of(bundle, target, precision);
  const std::int64_t bytes = bundle.files.at(weights_of(bundle, identity, precision)).bytes;
  const std::int64_t entry = cache_entry(identity, precision);
  return {bytes - table * (wide ? 4 : 2), 2 * model.layers * model.kv_heads * model.head_size * entry,
          model.parameters - table};
}

std::string library_of(const Bundle& bundle, const std::string& target, const std::string& precision) {
  const Json library = identity_of(bundle, target, precision).value("library", Json());
  const std::string name = library.is_string() ? library.get<std::string>() : "";
  return name.substr(std::min(name.find(' ') + 1, name.size()));
}

std::vector<Call> calls_of(const Plan& plan, const Result& result, const std::vector<std::int64_t>& done) {
  const bool own_pace = plan.jacobi > 0 || plan.rules.has_value();
  const std::vector<std::int64_t> live = own_pace ? std::vector<std::int64_t>() : live_slots(plan);
  std::vector<Call> calls;
  for (std::size_t index = 0; index < result.step_widths.size(); index++) {
    const std::int64_t width = result.step_widths[index];
    const std::int64_t before = own_pace ? fed(plan, index == 0 ? 0 : done[index - 1]) : 0;
    calls.push_back({width, result.step_queries[index], own_pace ? before + width : live[index]});
  }
  return calls;
}

} // namespace arforge
