#include "kernels/instructions.h"

namespace arforge::kernels {
namespace {

const Instructions*& known() noexcept {
  static const Instructions* found = avx512() != nullptr ? avx512() : avx_vnni();
  return found;
}

} // namespace

const Instructions* chosen() noexcept { return known(); }

bool supported() noexcept { return chosen() != nullptr; }

bool choose(std::string_view name) noexcept {
  for (const Instructions* one : {avx512(), avx_vnni()}) {
    if (one != nullptr && name == one->name) {
      known() = one;
      return true;
    }
  }
  return false;
}

void AlignedDelete::operator()(void* memory) const noexcept { ::operator delete(memory, std::align_val_t{LINE}); }

} // namespace arforge::kernels
