// Drives the fuzz target where the compiler has no libFuzzer: seeds of a folder, mutated at random for a bounded time.
//
//   fuzz-readers FOLDER -max_total_time=SECONDS [-seed=N]
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::string mutated(const std::vector<std::string>& seeds, std::mt19937_64& random) {
  const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % (limit + 1)); };
  std::string content = seeds[below(seeds.size() - 1)];
  for (std::size_t change = 0; change <= below(3) && !content.empty(); change++) {
    const std::size_t place = below(content.size() - 1);
    switch (below(4)) {
    case 0: // another bit
      content[place] = static_cast<char>(content[place] ^ 1 << below(7));
      break;
    case 1: // another byte
      content[place] = static_cast<char>(random());
      break;
    case 2: // cut short
      content.resize(place);
      break;
    case 3: { // a piece of another seed
      const std::string& other = seeds[below(seeds.size() - 1)];
      content.replace(place, below(8), other.substr(below(other.size()), below(64)));
      break;
    }
    default: // a piece twice
      content.insert(place, content.substr(below(content.size() - 1), below(32)));
    }
  }
  return content;
}

} // namespace

int main(int count, char** words) {
  std::vector<std::string> seeds;
  double seconds = 10;
  std::uint64_t seed = 1;
  for (int index = 1; index < count; index++) {
    const std::string word = words[index];
    if (word.rfind("-max_total_time=", 0) == 0) {
      seconds = std::stod(word.substr(16));
    } else if (word.rfind("-seed=", 0) == 0) {
      seed = std::stoull(word.substr(6));
    } else if (word.rfind('-', 0) != 0) {
      for (const auto& entry : std::filesystem::directory_iterator(word)) {
        std::ifstream file(entry.path(), std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      }
    }
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds: name a folder\n");
    return 2;
  }
  std::mt19937_64 random(seed);
  std::uint64_t runs = 0;
  const auto start = std::chrono::steady_clock::now();
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; runs++) {
    const std::string content = runs < seeds.size() ? seeds[runs] : mutated(seeds, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
  }
  std::fprintf(stderr, "Done %llu runs in %g seconds\n", static_cast<unsigned long long>(runs), seconds);
}
