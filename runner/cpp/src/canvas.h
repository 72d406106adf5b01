// The tokens of a request before decoding, and the windows in which a model decodes them. A canvas is the model's own
// grid or a larger one, with some cells known; a model sees one window of its own grid at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "arforge.hpp"
#include "bundle/facts.h"

namespace arforge {

inline constexpr std::int64_t UNKNOWN = -1;

struct Window {
  std::vector<std::int64_t> cells; // (the model's cells) the canvas cell of each
  std::vector<std::int32_t> kept;  // cells of the model's grid that are known when the window's turn comes
};

struct Canvas {
  std::int64_t rows, columns;
  std::vector<std::int64_t> tokens; // (images, cells), UNKNOWN where to decide
  std::vector<Window> windows;

  [[nodiscard]] std::int64_t cells() const { return rows * columns; }
  // Whether the model decodes its own grid with nothing known.
  [[nodiscard]] bool plain() const { return windows.size() == 1 && windows.front().kept.empty(); }

  // Where a cell of a window lies in `tokens`.
  [[nodiscard]] std::size_t place(const Window& window, std::int64_t image, std::int64_t cell) const {
    return static_cast<std::size_t>(image * cells() + window.cells[static_cast<std::size_t>(cell)]);
  }
  // The tokens (images, cells of the window) of images from `first` on.
  [[nodiscard]] std::vector<std::int64_t> take(const Window& window, std::int64_t first, std::int64_t images) const;
};

// Throws Error (request) for known tokens of another shape or out of range, or nothing to decide.
Canvas make_canvas(const Request& request, const ModelFacts& model);

} // namespace arforge
