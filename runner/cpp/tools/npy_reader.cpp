#include "npy_reader.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>

#include "arforge.hpp"

namespace {

constexpr const char* MAGIC = "\x93NUMPY";
constexpr std::size_t MAX_HEAD = 10000;                     // bytes of an .npy file's description
constexpr std::uint64_t MAX_ARRAY = std::uint64_t{1} << 48; // bytes
constexpr std::size_t PIECE = 1 << 20; // bytes that are read at once: a file may promise more than it has

template <class T>
T as(const char* bytes) {
  T value{};
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

template <class T>
double real(const char* bytes) {
  return static_cast<double>(as<T>(bytes));
}

double half(const char* bytes) {
  const auto bits = as<std::uint16_t>(bytes);
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double size = exponent == 31  ? (fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan(""))
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(fraction + 1024, exponent - 25);
  return (bits & 0x8000) != 0 ? -size : size;
}

constexpr std::array<NumberKind, 12> KINDS = {{{"|b1", "bool", 1, real<std::uint8_t>},
                                               {"|i1", "int8", 1, real<std::int8_t>},
                                               {"|u1", "uint8", 1, real<std::uint8_t>},
                                               {"<i2", "int16", 2, real<std::int16_t>},
                                               {"<u2", "uint16", 2, real<std::uint16_t>},
                                               {"<i4", "int32", 4, real<std::int32_t>},
                                               {"<u4", "uint32", 4, real<std::uint32_t>},
                                               {"<i8", "int64", 8, real<std::int64_t>},
                                               {"<u8", "uint64", 8, real<std::uint64_t>},
                                               {"<f2", "float16", 2, half},
                                               {"<f4", "float32", 4, real<float>},
                                               {"<f8", "float64", 8, real<double>}}};

const NumberKind* find_kind(const std::string& code) {
  const auto* const found =
      std::find_if(KINDS.begin(), KINDS.end(), [&](const NumberKind& each) { return code == each.code; });
  return found == KINDS.end() ? nullptr : found;
}

[[noreturn]] void refuse(const std::string& message) { throw arforge::Error(arforge::Code::request, message); }

[[noreturn]] void refuse_part(const std::string& name, const std::string& why) {
  refuse(name + " is not a whole .npy file of numbers (" + why + "): save it again");
}

// The next bytes of a file, as many as there are of those that it should have.
std::string read_bytes(std::istream& in, std::uint64_t wanted) {
  std::string bytes;
  while (bytes.size() < wanted && in) {
    const std::size_t before = bytes.size();
    bytes.resize(before + static_cast<std::size_t>(std::min<std::uint64_t>(PIECE, wanted - before)));
    in.read(bytes.data() + before, static_cast<std::streamsize>(bytes.size() - before));
    bytes.resize(before + static_cast<std::size_t>(in.gcount()));
  }
  return bytes;
}

std::size_t number_of(const std::string& little_endian) {
  std::size_t value = 0;
  for (std::size_t index = little_endian.size(); index-- > 0;) {
    value = value << 8 | static_cast<std::uint8_t>(little_endian[index]);
  }
  return value;
}

// The description of an array in its file: a dictionary as Python writes it.
class Description {
public:
  Description(const std::string& text, const std::string& name) : text_(text), name_(name) {}

  // Throws unless it names type, order and shape, each once, and they are those of an array that can be read.
  void read(Array& array) {
    std::set<std::string> keys;
    expect('{');
    while (!take('}')) {
      const std::string key = word();
      expect(':');
      if (!keys.insert(key).second) {
        fail();
      }
      read_field(key, array);
      if (!take(',') && peek() != '}') {
        fail();
      }
    }
    (void)peek();
    if (keys.size() != 3 || place_ != text_.size()) {
      fail();
    }
  }

private:
  void read_field(const std::string& key, Array& array) {
    if (key == "descr") {
      const std::string code = peek() == '[' ? "[...]" : word(); // a list, of a structure
      array.kind = find_kind(code);
      if (array.kind == nullptr) {
        refuse(name_ + " holds numbers of type '" + code +
               "': save them as little-endian float32, or float16 or float64; ids as int32 or int64, a mask also as "
               "bool or whole numbers");
      }
    } else if (key == "fortran_order") {
      (void)peek();
      if (text_.compare(place_, 4, "True") == 0) {
        refuse(name_ + " is in Fortran order: save numpy.ascontiguousarray of it");
      }
      if (text_.compare(place_, 5, "False") != 0) {
        fail();
      }
      place_ += 5;
    } else if (key == "shape") {
      expect('(');
      while (!take(')')) {
        array.shape.push_back(whole());
        if (!take(',') && peek() != ')') {
          fail();
        }
      }
    } else {
      fail();
    }
  }

  [[noreturn]] void fail() const { refuse_part(name_, "its description is none of NumPy's"); }

  // Goes to the next letter that is no space; 0 at the end.
  char peek() {
    place_ = std::min(text_.find_first_not_of(" \n", place_), text_.size());
    return place_ == text_.size() ? '\0' : text_[place_];
  }

  bool take(char letter) {
    const bool there = peek() == letter;
    place_ += there ? 1 : 0;
    return there;
  }

  void expect(char letter) {
    if (!take(letter)) {
      fail();
    }
  }

  std::string word() {
    const char quote = peek();
    const std::size_t end = text_.find(quote, place_ + 1);
    if ((quote != '\'' && quote != '"') || end == std::string::npos) {
      fail();
    }
    const std::string found = text_.substr(place_ + 1, end - place_ - 1);
    place_ = end + 1;
    return found;
  }

  std::int64_t whole() {
    (void)peek();
    std::int64_t value = 0;
    const auto [stop, failed] = std::from_chars(text_.data() + place_, text_.data() + text_.size(), value);
    if (failed != std::errc() || value < 0) {
      fail();
    }
    place_ = static_cast<std::size_t>(stop - text_.data());
    return value;
  }

  const std::string& text_;
  const std::string& name_;
  std::size_t place_ = 0;
};

} // namespace

std::size_t Array::size() const {
  std::size_t numbers = 1;
  for (const std::int64_t side : shape) {
    numbers *= static_cast<std::size_t>(side);
  }
  return numbers;
}

std::int64_t Array::whole(std::size_t index) const {
  const char* const bytes = content.data() + index * kind->bytes;
  return kind->bytes == sizeof(std::int64_t) ? as<std::int64_t>(bytes) : as<std::int32_t>(bytes);
}

std::string described(const Array& array) {
  std::string text = array.kind->name;
  const char* comma = " [";
  for (const std::int64_t side : array.shape) {
    text += comma + std::to_string(side);
    comma = ", ";
  }
  return text + (array.shape.empty() ? " []" : "]");
}

Array read_array(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    refuse("cannot read " + path + ": " + std::strerror(errno));
  }
  return read_array(in, path);
}

Array read_array(std::istream& in, const std::string& name) {
  const std::string head = read_bytes(in, 8); // magic and version
  if (head.compare(0, 6, MAGIC) != 0) {
    refuse(name + (head.rfind("PK", 0) == 0 ? " is an archive (.npz): save its one array with numpy.save"
                                            : " is no .npy file"));
  }
  if (head.size() < 8 || head[6] < 1 || head[6] > 3 || head[7] != 0) {
    refuse_part(name, "its version is none of 1.0, 2.0 and 3.0");
  }
  const std::size_t size = number_of(read_bytes(in, head[6] == 1 ? 2 : 4));
  const std::string text = read_bytes(in, std::min(size, MAX_HEAD + 1));
  if (text.size() != size || size > MAX_HEAD) {
    refuse_part(name, "its description is cut off or too long");
  }
  Array array;
  Description(text, name).read(array);
  std::uint64_t bytes = array.kind->bytes;
  for (const std::int64_t side : array.shape) {
    if (bytes != 0 && static_cast<std::uint64_t>(side) > MAX_ARRAY / bytes) {
      refuse_part(name, "its shape is out of range");
    }
    bytes *= static_cast<std::uint64_t>(side);
  }
  array.content = read_bytes(in, bytes);
  if (array.content.size() != bytes) {
    refuse_part(name, "it has " + std::to_string(array.content.size()) + " bytes of " + std::to_string(bytes));
  }
  if (in.peek() != std::istream::traits_type::eof()) {
    refuse_part(name, "bytes follow the array");
  }
  return array;
}
