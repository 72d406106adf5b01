// The contract of every graph of a bundle: names, types and shapes of its inputs and outputs, as data. What is bound,
// what is allocated, and what an opened graph is compared with all come from this table.
//
// A shape gives as a number what the model fixes, and as a word what a call decides: `images`; `rows`, as many or twice
// that (`guided_rows`); `width`, the tokens of a row in a step; `queries`, the cells that it asks for, of models that
// have them; `slots` of the caches; `condition`, the rows of a prompt that a step reads, of models that take prompts.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "bundle/facts.h"

namespace arforge {

enum class Type { boolean, int8, uint8, int64, float32, float16, bfloat16 };

struct Dimension {
  std::string word; // empty: a number
  std::int64_t size;

  Dimension(const char* name) : word(name), size(0) {}
  Dimension(std::int64_t number) : size(number) {}
};

struct Tensor {
  std::string name;
  Type type;
  std::vector<Dimension> shape;
};

struct Contract {
  std::vector<Tensor> inputs, outputs;
};

// The inputs and outputs of a graph by its name in the manifest. `cache`: the type of keys and values. Throws Error
// (bundle) for a graph that the format does not have.
Contract contract_of(const ModelFacts& model, const std::string& graph, Type cache);

// The step as TensorRT is given it: limits of sampling only where there are `filters`, and one mask for all rows. Where
// a model takes prompts, which are of unequal lengths, each row keeps a mask of its own. `own_mask`: the graph makes
// it. `views`: caches lie with slots first, and attention reads them by inputs of their own.
Contract lowered_contract(const ModelFacts& model, const std::string& graph, Type cache, bool filters, bool own_mask,
                          bool views);

// A step whose rows stand as heads of one row in the caches, which have these types by name, int8 or float32. `again`:
// the names under which the step gives some of them too.
Contract folded(const Contract& plain, const std::map<std::string, Type>& types,
                const std::map<std::string, std::vector<std::string>>& again);

// A step whose caches have these types, by name.
Contract typed(const Contract& plain, const std::map<std::string, Type>& types);

// The type of keys and values in a bundle's graphs of that precision.
Type cache_type(const std::string& precision);

// The inputs that are caches, keys and values by turns. Each is updated in place: its memory is that of the output
// `written_name`.
std::vector<std::string> cache_names(std::int64_t caches);
std::string written_name(const std::string& cache);

// The output that holds a step's own keys or values, of an engine that only reads its caches.
std::string update_name(const std::string& cache);

// The input that attention reads a cache by, where it is read in another shape than it is updated in.
std::string view_name(const std::string& cache);

// Whether a step reads rows of a prompt. Classes are tokens, of which the step has its own table.
bool conditioned(const ModelFacts& model);

// With guidance, a step has the conditional rows, then as many unconditional.
std::int64_t guided_rows(std::int64_t images, bool guided);

// As numpy spells it, and "bfloat16".
const char* name_of(Type type);

// Bytes of an entry.
std::size_t bytes_of(Type type);

// Sizes that stand for words.
using Sizes = std::map<std::string, std::int64_t>;

// A tensor's shape in numbers; -1 for a word that `sizes` does not have.
std::vector<std::int64_t> sizes_of(const Tensor& tensor, const Sizes& sizes);

// How many entries a shape has; throws std::bad_alloc where no memory could be as large. The second allocates nothing.
std::size_t entries_of(const std::vector<std::int64_t>& shape);
std::size_t entries_of(std::initializer_list<std::int64_t> shape);

// The step graph's shape in one step; `queries` is 0 where the model has none, `slots` those that the caches have.
struct Shape {
  std::int64_t width, queries, slots;
  bool operator==(const Shape& other) const { return !(*this < other) && !(other < *this); }
  bool operator<(const Shape& other) const {
    return std::tie(width, queries, slots) < std::tie(other.width, other.queries, other.slots);
  }
};

// The sizes that all steps of a generation have.
struct Extent {
  std::int64_t images, rows, slots;
  std::int64_t condition; // rows of a prompt that steps read, where the model takes prompts
  // Of the widest step, where all rows write to the same slots in each; 0: they may not. Of a prompt's passes: that of
  // the steps that it is for.
  std::int64_t lockstep = 0;
  bool operator==(const Extent& other) const { // of buffers
    return images == other.images && rows == other.rows && slots == other.slots && condition == other.condition;
  }
};

// Host memory of one kind of step: the runner fills the inputs, the engine the outputs. Shapes are the contract's; a
// tensor that it does not have for a model stays empty.
struct StepBuffers {
  std::vector<std::int64_t> tokens, positions, write_index;
  std::vector<std::uint8_t> mask; // bytes 0 and 1
  std::vector<std::int64_t> query_positions;
  std::vector<float> condition; // rows of prompts, the same in all steps of a generation
  std::vector<float> uniforms, noise, guidance, temperature, top_p; // a graph draws with one of the first two
  std::vector<std::int64_t> top_k, next_tokens;

  // Calls `use(name, buffer)` for each.
  template <class Use>
  void each(Use use) {
    use("tokens", tokens);
    use("positions", positions);
    use("write_index", write_index);
    use("mask", mask);
    use("query_positions", query_positions);
    use("condition", condition);
    use("uniforms", uniforms);
    use("noise", noise);
    use("guidance", guidance);
    use("temperature", temperature);
    use("top_k", top_k);
    use("top_p", top_p);
    use("next_tokens", next_tokens);
  }
};

// The words of one kind of step.
Sizes step_sizes(const Extent& extent, const Shape& shape);

// What follows from the number of images of a guided step: rows, and what comes in as many or multiples of them.
Sizes row_sizes(const ModelFacts& model, std::int64_t images);

// The buffers of one kind of step, all zero.
StepBuffers make_buffers(const Contract& contract, const Sizes& sizes);

// The tensor of that name; NULL where there is none.
const Tensor* find_tensor(const std::vector<Tensor>& tensors, const std::string& name);

} // namespace arforge
