#include "kernels/operators.h"

#include <initializer_list>
#include <memory>
#include <string_view>

#include "kernels/attention_operator.h"
#include "kernels/draw_operator.h"
#include "kernels/product_operators.h"

namespace arforge::kernels {
namespace {

constexpr std::string_view THEIRS = "\x22\x0bMatMulNBits"; // a node's field 4, its length, and the operator's name
constexpr std::string_view OURS = "\x22\x0bMatMulBlock";
static_assert(OURS.size() == THEIRS.size()); // so nothing else of the file moves
constexpr std::string_view OWN = "\x3a\x07"
                                 "arforge"; // a node's field 7, its length, and the operator's domain

// A domain with these operators, which is not destroyed at the process's end, when the library may be gone.
Ort::CustomOpDomain& domain_of(const char* name, std::initializer_list<const OrtCustomOp*> operators) {
  auto made = std::make_unique<Ort::CustomOpDomain>(name);
  for (const OrtCustomOp* one : operators) {
    made->Add(one);
  }
  return *made.release();
}

} // namespace

void add_operators(OrtSessionOptions* options) {
  static Ort::CustomOpDomain& theirs = domain_of("com.microsoft", {product_operator()});
  static Ort::CustomOpDomain& own =
      domain_of("arforge", {attention_operators()[0], attention_operators()[1], gated_operator(), draw_operator()});
  for (Ort::CustomOpDomain* const one : {&theirs, &own}) { // of many sessions, so no owner but this
    Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, *one));
  }
}

bool name_operators(std::string& graph) {
  bool found = graph.find(OWN) != std::string::npos;
  for (std::size_t at = graph.find(THEIRS); at != std::string::npos; at = graph.find(THEIRS, at + OURS.size())) {
    graph.replace(at, OURS.size(), OURS);
    found = true;
  }
  return found;
}

} // namespace arforge::kernels
