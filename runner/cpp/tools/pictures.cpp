#include "pictures.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "checksum.h"

namespace {

constexpr std::int64_t GAP = 2;            // pixels between images
constexpr std::size_t STORED = 65535;      // bytes of an uncompressed block of deflate
constexpr std::int64_t MAX_SIDE = 1 << 16; // of a picture that is read
constexpr std::uint32_t ADLER_MODULUS = 65521;

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bytes += static_cast<char>(value >> shift);
  }
  return bytes;
}

void write_chunk(std::ostream& out, const std::string& name, const std::string& content) {
  Crc32 crc;
  crc.enter(name.data(), name.size());
  crc.enter(content.data(), content.size());
  out << big_endian(static_cast<std::uint32_t>(content.size())) << name << content << big_endian(crc.value());
}

// The pixels of a PNG: a zlib stream of stored blocks, each in a chunk of its own.
class StoredPixels {
public:
  explicit StoredPixels(std::ostream& out) : out_(out) {}

  void enter(const char* data, std::size_t size) {
    for (std::size_t start = 0; start < size; start += STORED) {
      pending_.append(data + start, std::min(STORED, size - start));
      if (pending_.size() >= STORED) {
        write_block(STORED, false);
      }
    }
  }

  void finish() { write_block(pending_.size(), true); }

private:
  void write_block(std::size_t size, bool last) {
    for (std::size_t index = 0; index < size; index++) {
      low_ = (low_ + static_cast<std::uint8_t>(pending_[index])) % ADLER_MODULUS;
      high_ = (high_ + low_) % ADLER_MODULUS;
    }
    std::string block = first_ ? "\x78\x01" : "";
    block += {static_cast<char>(last), static_cast<char>(size), static_cast<char>(size >> 8), static_cast<char>(~size),
              static_cast<char>(~size >> 8)};
    block.append(pending_, 0, size);
    write_chunk(out_, "IDAT", last ? block + big_endian(high_ << 16 | low_) : block);
    pending_.erase(0, size);
    first_ = false;
  }

  std::ostream& out_;
  std::string pending_;
  std::uint32_t low_ = 1, high_ = 0; // of the check sum
  bool first_ = true;
};

// Calls `use` with each line of a picture, its pixels `zoom` times as large.
template <class Use>
void each_line(const Picture& picture, std::int64_t zoom, Use use) {
  const std::int64_t channels = picture.channels;
  std::string line;
  for (std::int64_t row = 0; row < picture.height; row++) {
    line.clear();
    for (std::int64_t column = 0; column < picture.width; column++) {
      const std::uint8_t* pixel = picture.pixels.data() + (row * picture.width + column) * channels;
      for (std::int64_t copy = 0; copy < zoom; copy++) {
        line.append(reinterpret_cast<const char*>(pixel), static_cast<std::size_t>(channels));
      }
    }
    for (std::int64_t copy = 0; copy < zoom; copy++) {
      use(line);
    }
  }
}

void write_png(std::ostream& out, const Picture& picture, std::int64_t zoom) {
  out << "\x89PNG\r\n\x1a\n";
  write_chunk(out, "IHDR",
              big_endian(static_cast<std::uint32_t>(zoom * picture.width)) +
                  big_endian(static_cast<std::uint32_t>(zoom * picture.height)) + std::string("\x08\x02\0\0\0", 5));
  StoredPixels pixels(out);
  each_line(picture, zoom, [&](const std::string& line) {
    pixels.enter("", 1); // no filter
    pixels.enter(line.data(), line.size());
  });
  pixels.finish();
  write_chunk(out, "IEND", "");
}

void write_ppm(std::ostream& out, const Picture& picture, std::int64_t zoom) {
  out << "P6\n" << zoom * picture.width << ' ' << zoom * picture.height << "\n255\n";
  each_line(picture, zoom, [&](const std::string& line) { out << line; });
}

// What a file is whose beginning is that of no picture that is read here.
std::string kind_of(const std::string& start) {
  const std::pair<const char*, const char*> kinds[] = {
      {"\x89PNG", "a PNG"},       {"\xff\xd8", "a JPEG"},     {"GIF8", "a GIF"},           {"RIFF", "a WebP"},
      {"P1", "of 1 bit a pixel"}, {"P4", "of 1 bit a pixel"}, {"P2", "written in digits"}, {"P3", "written in digits"}};
  for (const auto& [sign, kind] : kinds) {
    if (start.rfind(sign, 0) == 0) {
      return kind;
    }
  }
  return "something else";
}

} // namespace

Page::Page(std::int64_t images, std::int64_t across)
    : images_(images),
      across_(across > 0 ? across : static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(images))))) {}

void Page::add(const std::uint8_t* pixels, std::int64_t images, std::int64_t height, std::int64_t width) {
  if (placed_ == 0) {
    const std::int64_t down = (images_ + across_ - 1) / across_;
    picture_.height = down * (height + GAP) - GAP;
    picture_.width = across_ * (width + GAP) - GAP;
    picture_.pixels.assign(static_cast<std::size_t>(picture_.height * picture_.width * 3), 255);
  }
  for (std::int64_t image = 0; image < images; image++, placed_++) {
    const std::int64_t top = placed_ / across_ * (height + GAP);
    const std::int64_t left = placed_ % across_ * (width + GAP);
    for (std::int64_t row = 0; row < height; row++) {
      std::copy_n(pixels + (image * height + row) * width * 3, width * 3,
                  picture_.pixels.begin() + ((top + row) * picture_.width + left) * 3);
    }
  }
}

void write_picture(std::ostream& out, const std::string& name, const Picture& picture, std::int64_t zoom) {
  const bool portable = name.size() > 4 && name.compare(name.size() - 4, 4, ".ppm") == 0;
  portable ? write_ppm(out, picture, zoom) : write_png(out, picture, zoom);
}

Picture read_picture(const std::string& path) {
  const auto refuse = [&](const std::string& problem) {
    throw std::runtime_error(path + " " + problem + ": use a binary PPM or PGM (P6, P5) of 8 bits a channel");
  };
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error("cannot read " + path + ": " + std::strerror(errno));
  }
  std::string start(8, '\0');
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  const std::string magic = start.substr(0, 2);
  if (magic != "P5" && magic != "P6") {
    refuse("is " + kind_of(start));
  }
  file.clear();
  file.seekg(2);
  std::array<std::int64_t, 3> numbers{}; // width, height, lightest value
  for (std::int64_t& number : numbers) {
    file >> std::ws;
    while (file.peek() == '#') {
      std::string comment;
      std::getline(file, comment);
      file >> std::ws;
    }
    file >> number;
  }
  file.get();
  const auto [width, height, lightest] = numbers;
  if (!file || width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE) {
    refuse("has no sound header");
  }
  if (lightest != 255) {
    refuse("has values up to " + std::to_string(lightest) + ", not 255");
  }
  const auto expected = static_cast<std::streamsize>(height * width * (magic == "P6" ? 3 : 1));
  const std::streamoff begin = file.tellg();
  file.seekg(0, std::ios::end);
  if (const std::streamoff found = file.tellg() - begin; found != expected) {
    refuse("has " + std::to_string(found) + " bytes of pixels, its header asks for " + std::to_string(expected));
  }
  file.seekg(begin);
  Picture picture{height, width, magic == "P6" ? 3 : 1, std::vector<std::uint8_t>(static_cast<std::size_t>(expected))};
  file.read(reinterpret_cast<char*>(picture.pixels.data()), expected);
  return picture;
}
