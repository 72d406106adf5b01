// The pictures that arforge-run writes and reads: PNG without compression, PPM, PGM.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

struct Picture {
  std::int64_t height, width, channels; // 3: colours, 1: lightness
  std::vector<std::uint8_t> pixels;     // (height, width, channels)
};

// The grid of `images` images on white, filled as they come, `across` a row (0: nearly square).
class Page {
public:
  Page(std::int64_t images, std::int64_t across);

  // Places the next images, (images, height, width, 3), all of one size.
  void add(const std::uint8_t* pixels, std::int64_t images, std::int64_t height, std::int64_t width);

  [[nodiscard]] const Picture& picture() const { return picture_; }

private:
  std::int64_t images_, across_;
  std::int64_t placed_ = 0;
  Picture picture_{0, 0, 3, {}};
};

// PPM where the file's name ends so, else PNG; each pixel `zoom` times as large.
void write_picture(std::ostream& out, const std::string& name, const Picture& picture, std::int64_t zoom);

// A binary PPM (P6) or PGM (P5) of 8 bits a channel. Throws std::runtime_error that says what else it is.
Picture read_picture(const std::string& path);
