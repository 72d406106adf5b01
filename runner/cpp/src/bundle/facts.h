// What a manifest says, typed: model, condition, image tokenizer, sampler, graphs, schedules, engines, files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace arforge {

// A class id stands where a prompt would.
struct ClassCondition {
  std::int64_t classes;
  std::int64_t first_class; // id of class 0
  std::int64_t null_class;  // id of the unconditional rows
};

// A prompt is the output of a text encoder: at most `slots` rows of `width` numbers.
struct FeaturesCondition {
  std::int64_t slots, width;
  std::string captions; // what is done to a text before it is encoded: clean or raw
};

// A prompt is at most `slots` ids of a vocabulary of its own, template included. The last `start` ids begin the image.
// What the manifest says of a prompt's text is for callers, who have the tokenizer.
struct IdsCondition {
  std::int64_t slots, vocabulary;
  std::vector<std::int64_t> prefix, suffix; // ids before the text, and after it
  std::int64_t start;
  std::optional<std::int64_t>
      padding;                        // the id in place of left-out ones, where unconditional rows may see such prompts
  std::vector<std::int64_t> negative; // a whole prompt that unconditional rows may see; empty where there is none
  std::string unconditional;          // where a request does not say: padded, image or negative
};

using Condition = std::variant<ClassCondition, FeaturesCondition, IdsCondition>;

// As the manifest names it: "class", "features" or "ids".
const char* kind_of(const Condition& condition);

// Facts of the decoder. Image tokens are the ids [0, vocabulary).
struct ModelFacts {
  std::string family;
  std::string order;          // of cells that it was trained for: raster, regions or random
  std::int64_t rows, columns; // of the grid
  std::int64_t vocabulary;
  std::int64_t dim; // width of an embedding
  Condition condition;
  std::vector<std::int64_t> specials;             // ids of learned tokens that schedules feed by their index here
  std::optional<std::int64_t> row_end;            // the index of the special token that ends a row of the grid
  std::optional<std::vector<std::string>> labels; // a name a class
  std::string stored_precision; // what the bundle's step graphs hold weights as; they compute in float32
  bool queries;                 // the step graph takes the cells to decide as `query_positions`
  std::string positions;      // what a row of the rotary table stands for: "grid", a cell; "sequence", a place in line
  std::int64_t position_rows; // of that table
  std::int64_t layers;
  std::int64_t caches; // pairs of key and value caches
  std::int64_t kv_heads, head_size;
  std::int64_t parameters;
  std::optional<std::string> variant;

  [[nodiscard]] std::int64_t cells() const { return rows * columns; }
  // The largest position of a schedule's inputs, 0 being the condition token's.
  [[nodiscard]] std::int64_t last_position() const { return cells() + (row_end ? rows : 0); }
  // Tokens of a prompt at most; 0 of a model that takes classes.
  [[nodiscard]] std::int64_t prompt_limit() const;
  // Rows of the embedding table: one more than the largest id.
  [[nodiscard]] std::int64_t ids() const;
};

// Throws Error (request) for a model that takes no classes.
const ClassCondition& class_condition(const ModelFacts& model);

// Of a model that takes features, or ids of its own; NULL for another.
const FeaturesCondition* features_condition(const ModelFacts& model);
const IdsCondition* ids_condition(const ModelFacts& model);

struct ImageTokenizerFacts {
  std::int64_t codebook_size;
  std::int64_t downsampling;  // pixels a token, a side
  std::int64_t height, width; // of the model's images
};

// Which sampler is traced into the step graphs, and a request's settings where it names none.
struct SamplerDefaults {
  std::string kind; // uniform or noise
  // The step graph that draws so.
  [[nodiscard]] std::string graph() const { return kind == "noise" ? "step-noise" : "step"; }
  double guidance, temperature;
  std::int64_t top_k;
  double top_p;
};

struct File {
  std::int64_t bytes;
  std::string sha256;
};

struct Graph {
  std::string name, precision; // such as "step", "fp32"
  std::string path, weights;
};

struct StoredSchedule {
  std::string specification, path;
  std::int64_t steps, slots;
};

struct BuiltEngine {
  std::string target, precision, device;
  std::string path; // of its identity
};

} // namespace arforge
