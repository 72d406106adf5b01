// One CUDA GPU: its memory, one stream of work on it, and CUDA graphs of that work.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

namespace arforge {

constexpr std::size_t ALIGNMENT = 256; // bytes, of what TensorRT is given

// Planes of lines in device memory, one behind the other.
struct Planes {
  std::uint8_t* place = nullptr;
  std::size_t line = 0, lines = 0; // bytes from one line to the next, lines from one plane to the next

  // Lines of that many bytes, of which as many are added as let the next plane begin where a tensor may.
  static Planes of(std::size_t line, std::size_t lines);

  [[nodiscard]] std::size_t bytes() const { return line * lines; } // of a plane
  [[nodiscard]] std::uint8_t* plane(std::size_t index) const { return place + index * bytes(); }
};

// The first GPU. All work goes to one stream, in order; memory that it gives lasts as long as it does. Every function
// throws Error (engine) if CUDA fails.
class Gpu {
public:
  // Throws Error (engine) if a driver or a GPU is missing.
  Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu();

  [[nodiscard]] const std::string& compute_capability() const { return compute_capability_; } // such as "8.6"
  [[nodiscard]] cudaStream_t stream() const { return stream_; }

  std::uint8_t* allocate(std::size_t size); // device memory
  std::uint8_t* pinned(std::size_t size);   // host memory that copies run from and to beside other work

  // Queue a copy to the device, or from it; the host's memory must not change, or be read, until `synchronize`.
  void upload(std::uint8_t* target, const std::uint8_t* source, std::size_t size);
  void download(std::uint8_t* target, const std::uint8_t* source, std::size_t size);

  // Likewise of `rows` rows of `width` bytes, which lie side by side on the host and `pitch` bytes apart on the device.
  void upload_rows(std::uint8_t* target, std::size_t pitch, const std::uint8_t* source, std::size_t width,
                   std::size_t rows);
  void download_rows(std::uint8_t* target, const std::uint8_t* source, std::size_t pitch, std::size_t width,
                     std::size_t rows);

  // Queues a copy on the device: of bytes of a line, lines of a plane, and planes.
  void copy_box(const std::array<std::size_t, 3>& extent, const Planes& target, const Planes& source);

  // Queues zeros into the first `width` bytes of each of `rows` rows that lie `pitch` bytes apart.
  void clear(std::uint8_t* target, std::size_t pitch, std::size_t width, std::size_t rows);

  // Makes room for one more graph, so that capturing it allocates nothing here.
  void expect_graph() { graphs_.reserve(++expected_); }
  void expect_no_graph() { expected_--; }

  // What `work` queues is not done but becomes a graph for `launch`.
  template <class Work>
  cudaGraphExec_t captured(Work work) {
    begin_capture();
    try {
      work();
    } catch (...) {
      abandon_capture();
      throw;
    }
    return end_capture();
  }

  void launch(cudaGraphExec_t graph);

  // Frees a graph that `captured` gave, once nothing of it runs.
  void discard(cudaGraphExec_t graph) noexcept;

  // Waits until all queued work is done.
  void synchronize();

private:
  void begin_capture();
  void abandon_capture() noexcept;
  cudaGraphExec_t end_capture();

  std::string compute_capability_;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_, pinned_;
  std::vector<cudaGraphExec_t> graphs_;
  std::size_t expected_ = 0; // graphs
};

} // namespace arforge
