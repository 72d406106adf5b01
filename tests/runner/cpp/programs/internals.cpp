// What the library keeps to itself, for tests; linked with its static build.
//
//   internals contracts MANIFEST CACHE_PRECISION    the inputs and outputs of every graph of that model, as JSON
//   internals schedule SPECIFICATION ROWS COLUMNS ROW_END    of a grid whose rows end in that special token, as JSON
//   internals cores ROOT                            the cores that this process may use, with /proc and /sys below ROOT
#include <fstream>
#include <iostream>
#include <iterator>

#include "arforge.hpp"
#include "bundle/bundle.h"
#include "device.h"
#include "schedules/specification.h"
#include "step_graph.h"

namespace {

void print(const std::vector<arforge::Tensor>& tensors) {
  const char* comma = "";
  for (const arforge::Tensor& tensor : tensors) {
    std::cout << comma << "[\"" << tensor.name << "\", \"" << arforge::name_of(tensor.type) << "\", [";
    comma = "";
    for (const arforge::Dimension& dimension : tensor.shape) {
      dimension.word.empty() ? std::cout << comma << dimension.size
                             : std::cout << comma << '"' << dimension.word << '"';
      comma = ", ";
    }
    std::cout << "]]";
    comma = ", ";
  }
}

int contracts(const std::string& path, const std::string& precision) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const arforge::ModelFacts model = arforge::parse_manifest(content, path).model;
  const char* comma = "{";
  for (const char* graph : {"step", "step-logits", "step-noise", "condition", "text", "decoder", "encoder"}) {
    try {
      const arforge::Contract found = arforge::contract_of(model, graph, arforge::cache_type(precision));
      std::cout << comma << '"' << graph << "\": {\"inputs\": [";
      print(found.inputs);
      std::cout << "], \"outputs\": [";
      print(found.outputs);
      std::cout << "]}";
      comma = ", ";
    } catch (const arforge::Error&) { // a graph that such a model does not have
      continue;
    }
  }
  std::cout << "}\n";
  return 0;
}

int schedule(const std::string& specification, std::int64_t rows, std::int64_t columns, std::int64_t row_end) {
  const arforge::Schedule found =
      arforge::compile_schedule(arforge::parse_specification(specification), rows, columns, {}, row_end);
  const char* comma = "[";
  for (const arforge::Step& step : found.steps) {
    std::cout << comma << "{\"commit\": " << step.commit << ", \"guidance\": " << step.guidance << ", \"inputs\": [";
    comma = "";
    for (const arforge::Input& given : step.inputs) {
      std::cout << comma << '[' << static_cast<int>(given.source) << ", " << given.value << ", " << given.position
                << ", " << given.rank << ", " << given.holes << ']';
      comma = ", ";
    }
    std::cout << "], \"targets\": [";
    comma = "";
    for (const arforge::Target& target : step.targets) {
      std::cout << comma << '[' << target.row << ", " << target.cell << ']';
      comma = ", ";
    }
    std::cout << "]}";
    comma = ", ";
  }
  std::cout << "]\n";
  return 0;
}

} // namespace

int main(int count, char** words) {
  const std::string mode = count > 2 ? words[1] : "";
  if (mode == "schedule" && count == 6) {
    return schedule(words[2], std::stoll(words[3]), std::stoll(words[4]), std::stoll(words[5]));
  }
  if (mode == "cores") {
    std::cout << arforge::available_cores(words[2]) << ' ' << arforge::machine_cores(words[2]) << '\n';
    return 0;
  }
  return mode == "contracts" && count == 4 ? contracts(words[2], words[3]) : 2;
}
