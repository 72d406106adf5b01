#include "backends/folded_graph.h"

#include <limits>
#include <string_view>
#include <vector>

#include "arforge.hpp"
#include "bundle/files.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::uint64_t MARK = std::uint64_t{1} << 28; // added to heads of a row
constexpr std::size_t BYTES = 5;                       // of a protobuf number from the mark on, to 2^35
constexpr std::uint64_t MOST_HEADS = std::numeric_limits<std::int32_t>::max();
// Field 1 of an attribute, its name's length and its name, and field 3, its number.
constexpr std::string_view ATTRIBUTES[] = {{"\x0a\x09num_heads\x18", 12}, {"\x0a\x0ckv_num_heads\x18", 15}};

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

std::string folded_content(const std::filesystem::path& path, std::int64_t rows) {
  std::string content = read_file(path, LARGEST_GRAPH, Code::engine);
  bool found = false;
  for (const std::string_view& attribute : ATTRIBUTES) {
    for (std::size_t at = content.find(attribute); at != std::string::npos; at = content.find(attribute, at)) {
      at += attribute.size();
      if (at + BYTES > content.size() || !is_marked(content, at)) {
        continue;
      }
      const std::uint64_t marked = decoded(content, at);
      if (marked <= MARK || (marked - MARK) > MOST_HEADS / static_cast<std::uint64_t>(rows)) {
        throw Error(Code::engine, text(path.string(), " has no sound number of heads: rebuild the engine"));
      }
      encode((marked - MARK) * static_cast<std::uint64_t>(rows), content, at);
      found = true;
    }
  }
  if (!found) {
    throw Error(Code::engine, text(path.string(), " has no heads to count: rebuild the engine"));
  }
  return content;
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
