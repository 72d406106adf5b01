#include "canvas.h"

#include <algorithm>

#include "request.h"
#include "schedules/schedule.h"
#include "text.h"

namespace arforge {
namespace {

// Where windows begin along one side: half a window apart, the last one flush with the end.
std::vector<std::int64_t> starts(std::int64_t size, std::int64_t window) {
  std::vector<std::int64_t> places;
  for (std::int64_t start = 0; start < size - window; start += std::max<std::int64_t>(1, window / 2)) {
    places.push_back(start);
  }
  places.push_back(size - window);
  return places;
}

// The canvas cells of the model's grid at a place.
std::vector<std::int64_t> cells_at(const Canvas& canvas, const ModelFacts& model, std::int64_t top, std::int64_t left) {
  std::vector<std::int64_t> cells;
  for (std::int64_t row = 0; row < model.rows; row++) {
    for (std::int64_t column = 0; column < model.columns; column++) {
      cells.push_back((top + row) * canvas.columns + left + column);
    }
  }
  return cells;
}

// Windows that overlap by half and together decide every cell; those that know most come first.
std::vector<Window> windows_of(const Canvas& canvas, const ModelFacts& model, std::vector<bool> known) {
  std::vector<std::vector<std::int64_t>> places;
  for (const std::int64_t top : starts(canvas.rows, model.rows)) {
    for (const std::int64_t left : starts(canvas.columns, model.columns)) {
      places.push_back(cells_at(canvas, model, top, left));
    }
  }
  std::vector<Window> windows;
  while (true) {
    const std::vector<std::int64_t>* best = nullptr;
    std::int64_t most = -1;
    for (const auto& place : places) {
      const auto count = std::count_if(place.begin(), place.end(),
                                       [&](std::int64_t cell) { return known[static_cast<std::size_t>(cell)]; });
      if (count < model.cells() && count > most) {
        best = &place;
        most = count;
      }
    }
    if (best == nullptr) {
      return windows;
    }
    Window window{*best, {}};
    for (std::size_t index = 0; index < best->size(); index++) {
      const auto cell = static_cast<std::size_t>((*best)[index]);
      if (known[cell]) {
        window.kept.push_back(static_cast<std::int32_t>(index));
      }
      known[cell] = true;
    }
    windows.push_back(std::move(window));
  }
}

void check_shape(const Request& request, const ModelFacts& model, std::int64_t images) {
  const std::int64_t rows = request.known_rows;
  const std::int64_t columns = request.known_columns;
  if (rows < model.rows || columns < model.columns || rows > MAX_CELLS || columns > MAX_CELLS ||
      rows * columns > MAX_CELLS) {
    throw Error(Code::request, text("a grid of ", rows, "x", columns, " is out of range: use the model's ", model.rows,
                                    "x", model.columns, ", or a larger one of up to ", MAX_CELLS, " cells"));
  }
  const auto given = static_cast<std::int64_t>(request.known.size());
  if (given != rows * columns && given != images * rows * columns) {
    throw Error(Code::request, text(given, " known tokens for ", images, " images of ", rows, "x", columns,
                                    ": give as many as one image has, or all have"));
  }
}

} // namespace

std::vector<std::int64_t> Canvas::take(const Window& window, std::int64_t first, std::int64_t images) const {
  std::vector<std::int64_t> taken;
  for (std::int64_t image = first; image < first + images; image++) {
    for (std::size_t cell = 0; cell < window.cells.size(); cell++) {
      taken.push_back(tokens[place(window, image, static_cast<std::int64_t>(cell))]);
    }
  }
  return taken;
}

Canvas make_canvas(const Request& request, const ModelFacts& model) {
  const std::int64_t images = images_of(request);
  Canvas canvas{model.rows, model.columns, {}, {}};
  std::vector<std::int64_t> given = request.known;
  if (given.empty()) {
    given.assign(static_cast<std::size_t>(model.cells()), UNKNOWN);
  } else {
    check_shape(request, model, images);
    canvas.rows = request.known_rows;
    canvas.columns = request.known_columns;
  }
  const auto [least, most] = std::minmax_element(given.begin(), given.end());
  if (*least < UNKNOWN || *most >= model.vocabulary) {
    throw Error(Code::request,
                text("known tokens go from ", *least, " to ", *most, ": use -1 to ", model.vocabulary - 1));
  }
  const auto cells = static_cast<std::size_t>(canvas.cells());
  std::vector<bool> known(cells);
  for (std::size_t index = 0; index < given.size(); index++) {
    const bool here = given[index] != UNKNOWN;
    if (index < cells) {
      known[index] = here;
    } else if (here != known[index % cells]) {
      throw Error(Code::request,
                  "images know different cells: a request decides the same cells in all of them; use several");
    }
  }
  if (std::find(known.begin(), known.end(), false) == known.end()) {
    throw Error(Code::request, "nothing to decide: every cell is known");
  }
  canvas.tokens.reserve(static_cast<std::size_t>(images) * cells);
  while (canvas.tokens.size() < static_cast<std::size_t>(images) * cells) {
    canvas.tokens.insert(canvas.tokens.end(), given.begin(), given.end());
  }
  canvas.windows = windows_of(canvas, model, std::move(known));
  return canvas;
}

} // namespace arforge
