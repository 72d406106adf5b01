#include "backends/mapped_file.h"

#include <cstdint>

#include "bundle/files.h"
#include "text.h"

#ifndef _WIN32
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace arforge {

#ifdef _WIN32
MappedFile::MappedFile(const std::filesystem::path& path) : content_(read_file(path, INT64_MAX, Code::engine)) {
  data_ = content_.data();
  size_ = content_.size();
}

MappedFile::~MappedFile() = default;
#else
MappedFile::MappedFile(const std::filesystem::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts{};
  if (file >= 0 && fstat(file, &facts) == 0 && facts.st_size > 0) {
    size_ = static_cast<std::size_t>(facts.st_size);
    void* const place = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    data_ = place == MAP_FAILED ? nullptr : place;
  }
  if (file >= 0) {
    close(file); // what is mapped stays
  }
  if (data_ == nullptr) {
    throw Error(Code::engine, text("cannot read ", path.string(), ": rebuild the engine, or copy the bundle whole"));
  }
}

MappedFile::~MappedFile() { munmap(const_cast<void*>(data_), size_); }
#endif

} // namespace arforge
