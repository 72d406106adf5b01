// What graphs between two calls of a TensorRT step have in common: their memory, and how a batch gets there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backends/tensorrt_program.h"
#include "step_graph.h"

namespace arforge {

inline constexpr std::int64_t LOOK_EVERY = 8; // calls between two looks of the host
inline constexpr std::int64_t LONGEST_GRAPH =
    64; // calls of one CUDA graph: of 255 kernels a call they are 16,000 nodes

// A tensor's kind where the words of its shape have these sizes.
HostTensor kind_of(const Tensor& tensor, const Sizes& sizes);

// Memory for those of the contract's inputs that have these names.
Block block_of(Gpu& gpu, const Contract& contract, const Sizes& sizes, const std::vector<const char*>& names);

// Whole numbers into the beginning of a tensor that has room for more.
void put(const HostTensor& into, const std::vector<std::int64_t>& given, std::int64_t rest);

// Throws Error (engine) unless a program's tensors are those of the contract, since they lie in memory of these sizes.
void check_contract(const LoadedEngine& loaded, const Program& program, const Contract& contract, const Sizes& sizes);

// A batch as its request has it, and as the programs do, whose images may be more.
struct SpreadBatch {
  Extent extent;
  const std::vector<std::int64_t>& images; // for each of the programs' the request's
  const std::vector<std::int64_t>& rows;   // likewise

  // Puts what is there for each image, or row, of the request where it is for those of the programs, which have room
  // for more; nothing where it is neither given nor taken.
  template <class T>
  void put_images(const std::vector<T>& from, const std::map<std::string, HostTensor>& into, const char* name) const {
    const std::size_t bytes = from.size() * sizeof(T) / static_cast<std::size_t>(extent.images);
    put_items(reinterpret_cast<const std::uint8_t*>(from.data()), bytes, into, name, images);
  }
  template <class T>
  void put_rows(const std::vector<T>& from, const std::map<std::string, HostTensor>& into, const char* name) const {
    const std::size_t bytes = from.size() * sizeof(T) / static_cast<std::size_t>(extent.rows);
    put_items(reinterpret_cast<const std::uint8_t*>(from.data()), bytes, into, name, rows);
  }
  // Those settings of a request that no call changes.
  void put_settings(const StepBuffers& settings, const std::map<std::string, HostTensor>& into) const;

private:
  static void put_items(const std::uint8_t* from, std::size_t bytes, const std::map<std::string, HostTensor>& into,
                        const char* name, const std::vector<std::int64_t>& items);
};

} // namespace arforge
