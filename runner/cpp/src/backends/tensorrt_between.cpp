#include "backends/tensorrt_between.h"

#include <algorithm>
#include <cstring>

#include "arforge.hpp"
#include "text.h"

namespace arforge {

HostTensor kind_of(const Tensor& tensor, const Sizes& sizes) {
  const std::vector<std::int64_t> shape = sizes_of(tensor, sizes);
  return {nullptr, shape, tensor.type, entries_of(shape) * bytes_of(tensor.type)};
}

Block block_of(Gpu& gpu, const Contract& contract, const Sizes& sizes, const std::vector<const char*>& names) {
  Block::Kinds kinds;
  for (const char* const name : names) {
    if (const Tensor* const tensor = find_tensor(contract.inputs, name); tensor != nullptr) {
      kinds.emplace_back(name, kind_of(*tensor, sizes));
    }
  }
  return {gpu, kinds};
}

void put(const HostTensor& into, const std::vector<std::int64_t>& given, std::int64_t rest) {
  auto* const numbers = reinterpret_cast<std::int64_t*>(into.data);
  std::fill_n(std::copy(given.begin(), given.end(), numbers), entries_of(into.shape) - given.size(), rest);
}

void check_contract(const LoadedEngine& loaded, const Program& program, const Contract& contract, const Sizes& sizes) {
  const std::map<std::string, HostTensor> found = program.kinds();
  const auto refuse = [&](const std::string& problem) {
    throw Error(Code::engine, text(loaded.path().string(), " ", problem, ": build the engine again"));
  };
  std::size_t known = 0;
  for (const std::vector<Tensor>* const side : {&contract.inputs, &contract.outputs}) {
    for (const Tensor& tensor : *side) {
      const HostTensor wanted = kind_of(tensor, sizes);
      const auto own = found.find(tensor.name);
      if (own == found.end() || own->second.shape != wanted.shape || own->second.type != wanted.type) {
        refuse(text("does not take ", tensor.name, " as ", name_of(tensor.type), " [", listed(wanted.shape, ""), "]"));
      }
      known++;
    }
  }
  if (found.size() != known) {
    refuse(text("has ", found.size(), " inputs and outputs, expected ", known));
  }
}

void SpreadBatch::put_settings(const StepBuffers& settings, const std::map<std::string, HostTensor>& into) const {
  put_rows(settings.condition, into, "condition");
  put_images(settings.temperature, into, "temperature");
  put_images(settings.top_k, into, "top_k");
  put_images(settings.top_p, into, "top_p");
}

void SpreadBatch::put_items(const std::uint8_t* from, std::size_t bytes, const std::map<std::string, HostTensor>& into,
                            const char* name, const std::vector<std::int64_t>& items) {
  const auto place = into.find(name);
  if (place == into.end() || bytes == 0) {
    return;
  }
  const std::size_t pitch = place->second.bytes / items.size();
  std::uint8_t* to = place->second.data;
  for (const std::int64_t item : items) {
    std::memcpy(to, from + static_cast<std::size_t>(item) * bytes, bytes);
    std::memset(to + bytes, 0, pitch - bytes);
    to += pitch;
  }
}

} // namespace arforge
