#include "features_file.h"

#include <algorithm>

#include "npy_reader.h"

namespace {

using arforge::Code;
using arforge::Error;

// How many ones each row of a mask begins with; all of it where there is none. `whose`: what it goes with.
std::vector<std::int64_t> rows_of(const std::string& path, std::int64_t prompts, std::int64_t tokens,
                                  const char* whose) {
  if (path.empty()) {
    return std::vector<std::int64_t>(static_cast<std::size_t>(prompts), tokens);
  }
  const Array mask = read_array(path);
  if (mask.shape != std::vector<std::int64_t>{prompts, tokens}) {
    throw Error(Code::request, path + " holds " + described(mask) + ": expected the " + whose +
                                   "' mask, ones and zeros [" + std::to_string(prompts) + ", " +
                                   std::to_string(tokens) + "]");
  }
  std::vector<std::int64_t> counts;
  for (std::int64_t prompt = 0; prompt < prompts; prompt++) {
    const std::string row = path + ": row " + std::to_string(prompt);
    std::int64_t ones = 0;
    for (std::int64_t token = 0; token < tokens; token++) {
      const double value = mask.number(static_cast<std::size_t>(prompt * tokens + token));
      if (value != 0 && value != 1) {
        throw Error(Code::request, path + " holds other numbers than 1, for a token of the prompt, and 0, for padding");
      }
      if (value == 1 && ones < token) {
        throw Error(Code::request,
                    row + " has ones behind zeros: expected the prompt's ones first, then the padding's zeros");
      }
      ones += value == 1 ? 1 : 0;
    }
    if (ones == 0) {
      throw Error(Code::request, row + " is all padding: a prompt has a token at least");
    }
    counts.push_back(ones);
  }
  return counts;
}

} // namespace

FeaturesFile read_features(const std::string& path, const std::string& mask) {
  const Array array = read_array(path);
  if (array.shape.size() != 3 || !array.kind->is_floating()) {
    throw Error(Code::request, path + " holds " + described(array) +
                                   ": expected float16, float32 or float64 [prompts, tokens, width]");
  }
  const std::int64_t prompts = array.shape[0];
  const std::int64_t tokens = array.shape[1];
  const std::int64_t width = array.shape[2];
  if (array.size() == 0) {
    throw Error(Code::request, path + " holds no prompts: " + described(array));
  }
  const std::vector<std::int64_t> rows = rows_of(mask, prompts, tokens, "features");
  FeaturesFile file;
  file.values.resize(array.size());
  for (std::size_t index = 0; index < array.size(); index++) {
    file.values[index] = static_cast<float>(array.number(index));
  }
  for (std::int64_t prompt = 0; prompt < prompts; prompt++) {
    file.prompts.push_back(
        {file.values.data() + prompt * tokens * width, rows[static_cast<std::size_t>(prompt)], width});
  }
  return file;
}

IdsFile read_ids(const std::string& path, const std::string& mask) {
  Array array = read_array(path);
  if (array.shape.size() == 1) {
    array.shape.insert(array.shape.begin(), 1);
  }
  if (array.shape.size() != 2 || !array.kind->is_whole()) {
    throw Error(Code::request, path + " holds " + described(array) +
                                   ": expected int64 or int32 [prompts, tokens], padded on the right");
  }
  if (array.size() == 0) {
    throw Error(Code::request, path + " holds no prompts: " + described(array));
  }
  const std::int64_t tokens = array.shape[1];
  IdsFile file;
  file.values.resize(array.size());
  for (std::size_t index = 0; index < array.size(); index++) {
    file.values[index] = array.whole(index);
  }
  for (const std::int64_t count : rows_of(mask, array.shape[0], tokens, "ids")) {
    file.prompts.push_back({file.values.data() + static_cast<std::int64_t>(file.prompts.size()) * tokens, count});
  }
  return file;
}
