// What the library keeps to itself, for tests; linked with its static build.
//
//   internals contracts MANIFEST CACHE_PRECISION    the inputs and outputs of every graph of that model, as JSON, of
//                                                   the step with views, and of graphs between two calls
//   internals schedule SPECIFICATION ROWS COLUMNS ROW_END    of a grid whose rows end in that special token, as JSON
//   internals apart ROOT TARGET PRECISION           what is said of two rows that write to different slots
//   internals caches ROOT TARGET PRECISION          whether slots of 6 rows, and of 2, are written, read and cleared
//   internals cores ROOT                            the cores that this process may use, with /proc and /sys below ROOT
#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>

#include "arforge.hpp"
#include "backends/backend.h"
#include "bundle/bundle.h"
#include "device.h"
#include "loop_graph.h"
#include "schedules/specification.h"
#include "step_graph.h"
#include "table_graph.h"

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
  const auto show = [&](const char* name, const arforge::Contract& found) {
    std::cout << comma << '"' << name << "\": {\"inputs\": [";
    print(found.inputs);
    std::cout << "], \"outputs\": [";
    print(found.outputs);
    std::cout << "]}";
    comma = ", ";
  };
  for (const char* graph : {"step", "step-logits", "step-noise", "condition", "text", "decoder", "encoder"}) {
    try {
      show(graph, arforge::contract_of(model, graph, arforge::cache_type(precision)));
    } catch (const arforge::Error&) { // a graph that such a model does not have
      continue;
    }
  }
  show("views", arforge::lowered_contract(model, "step", arforge::cache_type(precision), false, false, true));
  for (const char* const graph : {"step", "step-noise"}) {
    for (const char* const masks : {"one", "own", "each"}) { // for all rows, the graph's own, one a row
      const std::string kind = std::string(graph) + " " + masks;
      const bool one = kind.find("one") != std::string::npos;
      const bool own = kind.find("own") != std::string::npos;
      show(("loop " + kind).c_str(), arforge::loop_contract(model, {12, 34, one, own}, graph));
      show(("table " + kind).c_str(), arforge::table_contract(model, {5, 6, 7, 8, 9}, graph, 34, one, own));
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

arforge::Options options_of(char** words) {
  arforge::Options options;
  options.target = words[3];
  options.precision = words[4];
  return options;
}

int apart(char** words) {
  const arforge::Bundle bundle = arforge::open_bundle(words[2]);
  const arforge::Backend opened = arforge::open_backend(bundle, options_of(words));
  const arforge::Shape shape{1, 0, 10};
  opened.engine->prepare({1, 2, 10, 1}, {shape}, 0);
  opened.engine->run(shape, true);
  opened.engine->buffers(shape).write_index[1] = 1;
  try {
    opened.engine->run(shape, false);
  } catch (const arforge::Error& error) {
    std::cout << error.what() << '\n';
    return 0;
  }
  return 1;
}

bool is_zero(const arforge::CacheContent& content) {
  return std::all_of(content.begin(), content.end(), [](const auto& cache) {
    return std::all_of(cache.begin(), cache.end(), [](std::uint8_t byte) { return byte == 0; });
  });
}

// Writes other bytes into slots 3 to 6 of each row, and clears the first 5.
bool keeps_rows(arforge::Engine& engine, std::int64_t images) {
  const std::int64_t rows = 2 * images;
  const std::vector<arforge::Shape> shapes{{1, 0, 10}};
  engine.prepare({images, rows, 10, 1}, shapes, 10);
  std::vector<arforge::CacheContent> written;
  for (std::int64_t row = 0; row < rows; row++) {
    written.push_back(engine.read_cache(row, 3, 4));
    std::uint8_t byte = 0;
    for (std::vector<std::uint8_t>& cache : written.back()) {
      std::generate(cache.begin(), cache.end(), [&] { return ++byte ^ static_cast<std::uint8_t>(row); });
    }
    engine.write_cache(row, 3, written.back());
  }
  bool well = true;
  for (std::int64_t row = 0; row < rows; row++) {
    well = well && is_zero(engine.read_cache(row, 0, 3)) && is_zero(engine.read_cache(row, 7, 3)) &&
           engine.read_cache(row, 3, 4) == written[static_cast<std::size_t>(row)];
  }
  engine.prepare({images, rows, 10, 1}, shapes, 5);
  for (std::int64_t row = 0; row < rows; row++) {
    well = well && is_zero(engine.read_cache(row, 0, 5)) && !is_zero(engine.read_cache(row, 5, 1)) &&
           !is_zero(engine.read_cache(row, 6, 1));
  }
  return well;
}

int caches(char** words) {
  const arforge::Bundle bundle = arforge::open_bundle(words[2]);
  const arforge::Backend opened = arforge::open_backend(bundle, options_of(words));
  const bool well = keeps_rows(*opened.engine, 3) && keeps_rows(*opened.engine, 1); // which lie otherwise in memory
  std::cout << (well ? "6 and 2 rows as they should be\n" : "rows that are not what was written\n");
  return 0;
}

} // namespace

int main(int count, char** words) {
  const std::string mode = count > 2 ? words[1] : "";
  if (mode == "schedule" && count == 6) {
    return schedule(words[2], std::stoll(words[3]), std::stoll(words[4]), std::stoll(words[5]));
  }
  if (mode == "apart" && count == 5) {
    return apart(words);
  }
  if (mode == "caches" && count == 5) {
    return caches(words);
  }
  if (mode == "cores") {
    std::cout << arforge::available_cores(words[2]) << ' ' << arforge::machine_cores(words[2]) << '\n';
    return 0;
  }
  return mode == "contracts" && count == 4 ? contracts(words[2], words[3]) : 2;
}
