#include "pictures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace {

constexpr std::int64_t GAP = 2;            // pixels between images
constexpr std::size_t STORED = 65535;      // bytes of an uncompressed block of deflate
constexpr std::int64_t MAX_SIDE = 1 << 16; // of a picture that is read
constexpr std::uint32_t ADLER_MODULUS = 65521;

std::uint32_t crc32(const std::string& data) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char letter : data) {
    crc ^= static_cast<std::uint8_t>(letter);
    for (int bit = 0; bit < 8; bit++) {
      crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
  }
  return ~crc;
}

std::uint32_t adler32(const std::string& data) {
  std::uint32_t low = 1;
  std::uint32_t high = 0;
  for (const char letter : data) {
    low = (low + static_cast<std::uint8_t>(letter)) % ADLER_MODULUS;
    high = (high + low) % ADLER_MODULUS;
  }
  return high << 16 | low;
}

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bytes += static_cast<char>(value >> shift);
  }
  return bytes;
}

std::string little_endian(std::uint64_t value, int size) {
  std::string bytes;
  for (int index = 0; index < size; index++) {
    bytes += static_cast<char>(value >> (8 * index));
  }
  return bytes;
}

std::string png_chunk(const std::string& name, const std::string& content) {
  return big_endian(static_cast<std::uint32_t>(content.size())) + name + content + big_endian(crc32(name + content));
}

// A zlib stream of stored blocks.
std::string stored(const std::string& data) {
  std::string stream = "\x78\x01";
  for (std::size_t start = 0; start < data.size(); start += STORED) {
    const std::size_t size = std::min(STORED, data.size() - start);
    stream += static_cast<char>(start + size == data.size());
    stream += little_endian(size, 2) + little_endian(~size, 2) + data.substr(start, size);
  }
  return stream + big_endian(adler32(data));
}

std::string png(const Picture& picture) {
  std::string lines;
  const auto line = static_cast<std::size_t>(picture.width * 3);
  for (std::size_t row = 0; row < static_cast<std::size_t>(picture.height); row++) {
    const auto* start = reinterpret_cast<const char*>(picture.pixels.data()) + row * line;
    lines += '\0'; // no filter
    lines.append(start, line);
  }
  const std::string header = big_endian(static_cast<std::uint32_t>(picture.width)) +
                             big_endian(static_cast<std::uint32_t>(picture.height)) + std::string("\x08\x02\0\0\0", 5);
  return "\x89PNG\r\n\x1a\n" + png_chunk("IHDR", header) + png_chunk("IDAT", stored(lines)) + png_chunk("IEND", "");
}

std::string ppm(const Picture& picture) {
  std::ostringstream out;
  out << "P6\n" << picture.width << ' ' << picture.height << "\n255\n";
  out.write(reinterpret_cast<const char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  return out.str();
}

} // namespace

Picture page_of(const std::vector<std::uint8_t>& pixels, std::int64_t images, std::int64_t height, std::int64_t width,
                std::int64_t across, std::int64_t zoom) {
  across = across > 0 ? across : static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(images))));
  const std::int64_t down = (images + across - 1) / across;
  Picture page{zoom * (down * (height + GAP) - GAP), zoom * (across * (width + GAP) - GAP), 3, {}};
  page.pixels.assign(static_cast<std::size_t>(page.height * page.width * 3), 255);
  for (std::int64_t image = 0; image < images; image++) {
    const std::int64_t top = zoom * (image / across) * (height + GAP);
    const std::int64_t left = zoom * (image % across) * (width + GAP);
    for (std::int64_t row = 0; row < zoom * height; row++) {
      for (std::int64_t column = 0; column < zoom * width; column++) {
        const std::int64_t from = ((image * height + row / zoom) * width + column / zoom) * 3;
        std::copy_n(pixels.begin() + from, 3, page.pixels.begin() + ((top + row) * page.width + left + column) * 3);
      }
    }
  }
  return page;
}

void write_picture(const std::string& path, const Picture& picture) {
  const bool portable = path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0;
  write_file(path, portable ? ppm(picture) : png(picture));
}

std::string npy(const std::string& kind, const std::vector<std::int64_t>& shape, const void* data, std::size_t size) {
  std::ostringstream header;
  header << "{'descr': '" << kind << "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t side : shape) {
    header << side << ", ";
  }
  header << "), }";
  std::string text = header.str();
  text.resize((text.size() + 11 + 63) / 64 * 64 - 11, ' '); // with the 10 bytes before and the line's end, 64s
  text += '\n';
  return std::string("\x93NUMPY\x01\0", 8) + little_endian(text.size(), 2) + text +
         std::string(static_cast<const char*>(data), size);
}

std::string npz(const std::string& name, const std::string& array) {
  if (array.size() > UINT32_MAX - (1 << 16)) {
    throw std::runtime_error("an .npz of more than 4 GiB: write fewer images");
  }
  const std::string file = name + ".npy";
  const std::string facts = little_endian(0, 2) + little_endian(0, 2) + little_endian(0, 2) + little_endian(33, 2) +
                            little_endian(crc32(array), 4) + little_endian(array.size(), 4) +
                            little_endian(array.size(), 4) + little_endian(file.size(), 2) + little_endian(0, 2);
  const std::string local = "PK\x03\x04" + little_endian(20, 2) + facts + file + array;
  const std::string central =
      "PK\x01\x02" + little_endian(20, 2) + little_endian(20, 2) + facts + std::string(2 + 2 + 2 + 4 + 4, '\0') + file;
  const std::string end = "PK\x05\x06" + std::string(4, '\0') + little_endian(1, 2) + little_endian(1, 2) +
                          little_endian(central.size(), 4) + little_endian(local.size(), 4) + std::string(2, '\0');
  return local + central + end;
}

void write_file(const std::string& path, const std::string& content) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    throw std::runtime_error("cannot write " + path);
  }
}

Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  std::array<std::int64_t, 3> numbers{}; // width, height, lightest value
  file >> magic;
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
  const bool sound = file && (magic == "P5" || magic == "P6") && width > 0 && height > 0 && width <= MAX_SIDE &&
                     height <= MAX_SIDE && lightest == 255;
  Picture picture{height, width, magic == "P6" ? 3 : 1, {}};
  if (sound) {
    picture.pixels.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (!sound || picture.pixels.size() != static_cast<std::size_t>(height * width * picture.channels)) {
    throw std::runtime_error(path + " is not a binary PPM or PGM (P6, P5) of 8 bits a channel");
  }
  return picture;
}
