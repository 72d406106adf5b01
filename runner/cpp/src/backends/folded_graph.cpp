#include "backends/folded_graph.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string_view>
#include <vector>

#include "arforge.hpp"
#include "bundle/files.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::uint64_t MARK = std::uint64_t{1} << 28; // times 1 and up, added to numbers of one row
constexpr std::size_t BYTES = 5;                       // of a protobuf number from the mark on, to 2^35
constexpr std::uint64_t MOST_HEADS = std::numeric_limits<std::int32_t>::max();
// Field 1 of an attribute, its name's length and its name, and field 3, its number.
constexpr std::string_view ATTRIBUTES[] = {
    {"\x0a\x09num_heads\x18", 12}, {"\x0a\x0ckv_num_heads\x18", 15}, {"\x0a\x09value_int\x18", 12}};

bool is_marked(const std::string& content, std::size_t at) {
  for (std::size_t place = 0; place < BYTES; place++) {
    const bool more = (static_cast<unsigned char>(content[at + place]) & 0x80U) != 0;
    if (more != (place + 1 < BYTES)) {
      return false;
    }
  }
  return true;
}

std::uint64_t decoded(const std::string& content, std::size_t at) {
  std::uint64_t number = 0;
  for (std::size_t place = 0; place < BYTES; place++) {
    number |= std::uint64_t{static_cast<unsigned char>(content[at + place]) & 0x7FU} << (7 * place);
  }
  return number;
}

void encode(std::uint64_t number, std::string& content, std::size_t at) {
  for (std::size_t place = 0; place < BYTES; place++) {
    const auto low = static_cast<unsigned char>((number >> (7 * place)) & 0x7FU);
    content[at + place] = static_cast<char>(place + 1 < BYTES ? low | 0x80U : low);
  }
}

} // namespace

std::vector<std::int64_t> usual_rows() { return {2, 1, 4, 8, 6, 16, 3, 5, 7, 10, 12, 14, 20, 24, 28, 32}; }

void use_rows(std::int64_t rows, std::vector<std::int64_t>& used) {
  auto place = std::find(used.begin(), used.end(), rows);
  if (place == used.end()) {
    *--place = rows;
  }
  std::rotate(used.begin(), place, place + 1);
}

std::string folded_content(const std::filesystem::path& path, const std::vector<std::int64_t>& rows) {
  std::string content = read_file(path, LARGEST_GRAPH, Code::engine);
  std::set<std::uint64_t> numbers;
  for (const std::string_view& attribute : ATTRIBUTES) {
    for (std::size_t at = content.find(attribute); at != std::string::npos; at = content.find(attribute, at)) {
      at += attribute.size();
      if (at + BYTES > content.size() || !is_marked(content, at)) {
        continue;
      }
      const std::uint64_t marked = decoded(content, at);
      const std::uint64_t which = marked / MARK;
      const std::uint64_t heads = marked % MARK;
      const auto count = which == 0 || which > rows.size() ? 0 : static_cast<std::uint64_t>(rows[which - 1]);
      if (count == 0 || heads == 0 || heads > MOST_HEADS / count) {
        throw Error(Code::engine, text(path.string(), " has no sound number of heads: rebuild the engine"));
      }
      encode(heads * count, content, at);
      numbers.insert(which);
    }
  }
  if (numbers.size() != rows.size()) {
    throw Error(Code::engine, text(path.string(), " has heads for ", numbers.size(), " numbers of rows, not ",
                                   rows.size(), ": rebuild the engine"));
  }
  return content;
}

std::map<std::string, std::vector<std::string>> read_again(const ModelFacts& model) {
  std::map<std::string, std::vector<std::string>> again;
  for (const char* const kind : {"key", "value"}) {
    const std::string cache = text(kind, "_cache_", model.caches - 1);
    for (std::int64_t hand = 0; model.layers > model.caches && hand <= model.layers - model.caches; hand++) {
      again[cache].push_back(text(written_name(cache), "_again_", hand));
    }
  }
  return again;
}

std::map<std::string, Type> cache_types(const Ort::Session& session, const ModelFacts& model) {
  std::map<std::string, Type> types;
  for (const std::string& name : cache_names(model.caches)) {
    types[name] = Type::float32;
  }
  const std::vector<std::string> names = session.GetInputNames();
  for (std::size_t index = 0; index < names.size(); index++) {
    const auto known = types.find(names[index]);
    const Ort::TypeInfo info = session.GetInputTypeInfo(index);
    if (known != types.end() && info.GetONNXType() == ONNX_TYPE_TENSOR &&
        info.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) {
      known->second = Type::int8;
    }
  }
  return types;
}

} // namespace arforge
