#include "preview.h"

#include <algorithm>
#include <array>

#include "text.h"

namespace arforge {
namespace {

constexpr std::uint8_t GREY = 128;

// The token beside a cell of one image at an offset; UNKNOWN beyond the grid.
std::int64_t beside(const std::int64_t* tokens, std::int64_t rows, std::int64_t columns, std::int64_t row,
                    std::int64_t column) {
  const bool there = row >= 0 && row < rows && column >= 0 && column < columns;
  return there ? tokens[row * columns + column] : UNKNOWN;
}

// One round: cells that have decided neighbours take the first one's token. Returns whether any did.
bool spread_once(std::int64_t* tokens, std::int64_t rows, std::int64_t columns) {
  const std::vector<std::int64_t> before(tokens, tokens + rows * columns);
  bool any = false;
  for (std::int64_t row = 0; row < rows; row++) {
    for (std::int64_t column = 0; column < columns; column++) {
      std::int64_t& token = tokens[row * columns + column];
      const std::array<std::array<std::int64_t, 2>, 4> near{
          {{row - 1, column}, {row, column - 1}, {row, column + 1}, {row + 1, column}}};
      for (std::size_t side = 0; side < near.size() && token == UNKNOWN; side++) {
        token = beside(before.data(), rows, columns, near[side][0], near[side][1]);
        any = any || token != UNKNOWN;
      }
    }
  }
  return any;
}

// Greys the pixels (height, width, 3) of open cells of one image.
void grey(std::uint8_t* pixels, const std::int64_t* tokens, std::int64_t rows, std::int64_t columns,
          std::int64_t side) {
  const std::int64_t line = columns * side * 3; // bytes
  for (std::int64_t cell = 0; cell < rows * columns; cell++) {
    if (tokens[cell] != UNKNOWN) {
      continue;
    }
    for (std::int64_t row = 0; row < side; row++) {
      std::fill_n(pixels + (cell / columns * side + row) * line + cell % columns * side * 3, side * 3, GREY);
    }
  }
}

} // namespace

std::vector<std::int64_t> nearest(std::vector<std::int64_t> tokens, std::int64_t rows, std::int64_t columns) {
  const auto cells = static_cast<std::ptrdiff_t>(rows * columns);
  for (auto image = tokens.begin(); image != tokens.end(); image += cells) {
    while (spread_once(&*image, rows, columns)) {
    }
    std::replace(image, image + cells, UNKNOWN, std::int64_t{0});
  }
  return tokens;
}

Partial partial_of(const Partial::Source& source, std::int64_t done) {
  Partial partial(source);
  partial.first = source.first;
  partial.images = source.images;
  partial.done = done;
  partial.steps = source.steps;
  partial.rows = source.canvas.rows;
  partial.columns = source.canvas.columns;
  return partial;
}

std::vector<std::int64_t> Partial::tokens() const {
  const Source& from = *source_;
  const std::vector<bool> decided = from.decoding.decided();
  const auto cells = static_cast<std::int64_t>(from.window.cells.size());
  const auto start = from.canvas.tokens.begin() + (from.first + offset_) * from.canvas.cells();
  std::vector<std::int64_t> found(start, start + images * from.canvas.cells());
  for (std::int64_t image = 0; image < images; image++) {
    for (std::int64_t cell = 0; cell < cells; cell++) {
      const bool known = decided[static_cast<std::size_t>((offset_ + image) * cells + cell)];
      found[from.canvas.place(from.window, image, cell)] = known ? from.decoding.token(offset_ + image, cell) : UNKNOWN;
    }
  }
  return found;
}

Pictures Partial::pixels(Undecided undecided) const {
  if (source_->codec == nullptr) {
    throw Error(Code::request,
                "the bundle has no image tokenizer to show images with: export it with --tokenizer FILE");
  }
  const std::vector<std::int64_t> found = tokens();
  const std::vector<std::int64_t> filled = nearest(found, rows, columns);
  Pictures pictures;
  source_->codec->decode(filled.data(), images, rows, columns,
                         [&](const std::uint8_t* pixels, std::int64_t count, std::int64_t height, std::int64_t width) {
                           pictures = {{pixels, pixels + count * height * width * 3}, height, width};
                         });
  const std::int64_t cells = rows * columns;
  for (std::int64_t image = 0; image < images; image++) {
    const std::int64_t* own = found.data() + image * cells;
    const bool nothing = std::all_of(own, own + cells, [](std::int64_t token) { return token == UNKNOWN; });
    if (undecided == Undecided::grey || nothing) { // of which none is near
      grey(pictures.pixels.data() + image * pictures.height * pictures.width * 3, own, rows, columns,
           pictures.height / rows);
    }
  }
  return pictures;
}

Partial Partial::part(std::int64_t place, std::int64_t count, std::int64_t from) const {
  if (place < 0 || count < 1 || count > images - place) {
    throw Error(Code::request, text(count, " images from ", place, " on are not among the ", images, " of a preview"));
  }
  Partial found = *this;
  found.first = from;
  found.images = count;
  found.offset_ += place;
  return found;
}

} // namespace arforge
