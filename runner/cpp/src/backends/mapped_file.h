// A file's content as memory that the system reads when it is looked at.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace arforge {

class MappedFile {
public:
  // Throws Error (engine) if it cannot be read.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] const void* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }

private:
  const void* data_ = nullptr;
  std::size_t size_ = 0;
#ifdef _WIN32
  std::string content_;
#endif
};

} // namespace arforge
