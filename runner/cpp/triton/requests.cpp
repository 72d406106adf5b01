#include "requests.h"

#include <cstring>
#include <functional>
#include <map>
#include <numeric>

namespace {

using arforge::Code;
using arforge::Error;

struct Array {
  std::string name;
  TRITONSERVER_DataType type;
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;
};

Array read_input(TRITONBACKEND_Request* request, std::uint32_t index) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(request, index, &input));
  const char* name = nullptr;
  const std::int64_t* shape = nullptr;
  std::uint32_t dimensions = 0, buffers = 0;
  std::uint64_t size = 0;
  Array array{};
  check(TRITONBACKEND_InputProperties(input, &name, &array.type, &shape, &dimensions, &size, &buffers));
  array.name = name;
  array.shape.assign(shape, shape + dimensions);
  for (std::uint32_t buffer = 0; buffer < buffers; buffer++) {
    const void* place = nullptr;
    std::uint64_t bytes = 0;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    std::int64_t device = 0;
    check(TRITONBACKEND_InputBuffer(input, buffer, &place, &bytes, &memory, &device));
    if (memory == TRITONSERVER_MEMORY_GPU) {
      throw Error(Code::request, "input " + array.name + " is in a GPU's memory: send it from the host's");
    }
    const char* const from = static_cast<const char*>(place);
    array.bytes.insert(array.bytes.end(), from, from + bytes);
  }
  return array;
}

// The numbers of an input of that type and so many dimensions.
template <class T>
std::vector<T> numbers(const Array& array, TRITONSERVER_DataType type, std::size_t dimensions) {
  std::int64_t entries = 1;
  for (const std::int64_t size : array.shape) {
    entries *= size;
  }
  if (array.type != type || array.shape.size() != dimensions ||
      array.bytes.size() != static_cast<std::size_t>(entries) * sizeof(T)) {
    throw Error(Code::request, "input " + array.name +
                                   " is of another type or shape than the model's configuration "
                                   "of arforge says: write it with arforge triton");
  }
  std::vector<T> found(static_cast<std::size_t>(entries));
  std::memcpy(found.data(), array.bytes.data(), array.bytes.size());
  return found;
}

// A parameter's value, as the type that its setting has.
struct Parameter {
  std::string name;
  TRITONSERVER_ParameterType type;
  const void* value;

  [[nodiscard]] double real() const {
    return type == TRITONSERVER_PARAMETER_DOUBLE ? *static_cast<const double*>(value) : static_cast<double>(whole());
  }
  [[nodiscard]] std::int64_t whole() const {
    if (type == TRITONSERVER_PARAMETER_BOOL) {
      return *static_cast<const bool*>(value) ? 1 : 0;
    }
    return type == TRITONSERVER_PARAMETER_INT ? *static_cast<const std::int64_t*>(value) : wrong<std::int64_t>();
  }
  [[nodiscard]] std::string words() const {
    return type == TRITONSERVER_PARAMETER_STRING ? static_cast<const char*>(value) : wrong<std::string>();
  }

private:
  template <class T>
  T wrong() const {
    throw Error(Code::request, "parameter " + name + " is of another type: see arforge's documentation of Triton");
  }
};

void read_parameters(TRITONBACKEND_Request* from, arforge::Request& request) {
  const std::map<std::string, std::function<void(const Parameter&)>> known = {
      {"schedule", [&](const auto& given) { request.schedule = given.words(); }},
      {"guidance", [&](const auto& given) { request.guidance = given.real(); }},
      {"temperature", [&](const auto& given) { request.temperature = given.real(); }},
      {"top_k", [&](const auto& given) { request.top_k = given.whole(); }},
      {"top_p", [&](const auto& given) { request.top_p = given.real(); }},
      {"greedy", [&](const auto& given) { request.greedy = given.whole() != 0; }},
      {"unconditional", [&](const auto& given) { request.unconditional = given.words(); }},
      {"prefill", [&](const auto& given) { request.prefill = given.words(); }},
  };
  std::uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(from, &count));
  for (std::uint32_t index = 0; index < count; index++) {
    const char* name = nullptr;
    Parameter given{};
    check(TRITONBACKEND_RequestParameter(from, index, &name, &given.type, &given.value));
    given.name = name;
    const auto setting = known.find(given.name);
    if (setting != known.end()) {
      setting->second(given);
    } else if (given.name.rfind("triton_", 0) != 0) { // which are the server's own
      throw Error(Code::request, "no such parameter: " + given.name);
    }
  }
}

void write(TRITONBACKEND_Response* response, const char* name, TRITONSERVER_DataType type,
           const std::vector<std::int64_t>& shape, const void* from, std::size_t bytes) {
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response, &output, name, type, shape.data(),
                                     static_cast<std::uint32_t>(shape.size())));
  void* place = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  std::int64_t device = 0;
  check(TRITONBACKEND_OutputBuffer(output, &place, bytes, &memory, &device));
  if (memory == TRITONSERVER_MEMORY_GPU) {
    throw std::runtime_error(std::string("output ") + name + " is asked for in a GPU's memory: take it in the host's");
  }
  std::memcpy(place, from, bytes);
}

} // namespace

void check(TRITONSERVER_Error* error) {
  if (error != nullptr) {
    const std::string message = TRITONSERVER_ErrorMessage(error);
    TRITONSERVER_ErrorDelete(error);
    throw std::runtime_error(message);
  }
}

void ignore(TRITONSERVER_Error* error) {
  if (error != nullptr) {
    TRITONSERVER_ErrorDelete(error);
  }
}

TRITONSERVER_Error* error_of(const std::exception& error) {
  TRITONSERVER_Error_Code code = TRITONSERVER_ERROR_INTERNAL;
  if (const auto* ours = dynamic_cast<const Error*>(&error)) {
    const bool theirs = ours->code() == Code::request || ours->code() == Code::schedule;
    code = theirs                               ? TRITONSERVER_ERROR_INVALID_ARG
           : ours->code() == Code::cancelled    ? TRITONSERVER_ERROR_CANCELLED
           : ours->code() == Code::queue_full   ? TRITONSERVER_ERROR_UNAVAILABLE
           : ours->code() == Code::missing_file ? TRITONSERVER_ERROR_NOT_FOUND
                                                : TRITONSERVER_ERROR_INTERNAL;
  }
  return TRITONSERVER_ErrorNew(code, error.what());
}

TritonRequest::TritonRequest(TRITONBACKEND_Request* from) {
  std::uint32_t inputs = 0;
  check(TRITONBACKEND_RequestInputCount(from, &inputs));
  for (std::uint32_t index = 0; index < inputs; index++) {
    const Array array = read_input(from, index);
    if (array.name == "class") {
      request.classes = numbers<std::int64_t>(array, TRITONSERVER_TYPE_INT64, 2);
    } else if (array.name == "seed") {
      request.seeds = numbers<std::uint64_t>(array, TRITONSERVER_TYPE_UINT64, 2);
    } else if (array.name == "ids") {
      ids_ = numbers<std::int64_t>(array, TRITONSERVER_TYPE_INT64, 2);
      for (std::int64_t image = 0; image < array.shape[0]; image++) {
        const std::int64_t* const own = ids_.data() + image * array.shape[1];
        std::int64_t length = array.shape[1];
        while (length > 0 && own[length - 1] == -1) { // behind what is shorter
          length--;
        }
        request.ids.push_back({own, length});
      }
    } else if (array.name == "features") {
      features_ = numbers<float>(array, TRITONSERVER_TYPE_FP32, 3);
      for (std::int64_t image = 0; image < array.shape[0]; image++) {
        request.features.push_back(
            {features_.data() + image * array.shape[1] * array.shape[2], array.shape[1], array.shape[2]});
      }
    } else if (array.name == "known") {
      request.known = numbers<std::int64_t>(array, TRITONSERVER_TYPE_INT64, 3);
      request.known_rows = array.shape[1];
      request.known_columns = array.shape[2];
    } else {
      throw Error(Code::request, "no such input: " + array.name + "; words are for the Python backend");
    }
  }
  read_parameters(from, request);
}

bool respond(TRITONBACKEND_Request* request, const arforge::Result& result) {
  TRITONBACKEND_Response* response = nullptr;
  check(TRITONBACKEND_ResponseNew(&response, request));
  TRITONSERVER_Error* failed = nullptr;
  try {
    if (!result.pixels.empty()) {
      write(response, "image", TRITONSERVER_TYPE_UINT8, {result.images, result.height, result.width, 3},
            result.pixels.data(), result.pixels.size());
    }
    write(response, "tokens", TRITONSERVER_TYPE_INT64, {result.images, result.rows * result.columns},
          result.tokens.data(), result.tokens.size() * sizeof result.tokens[0]);
  } catch (const std::exception& error) {
    failed = error_of(error);
  }
  const bool whole = failed == nullptr;
  ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, failed));
  ignore(failed); // which stays ours
  return whole;
}

void refuse(TRITONBACKEND_Request* request, const std::exception& error) {
  TRITONBACKEND_Response* response = nullptr;
  ignore(TRITONBACKEND_ResponseNew(&response, request));
  if (response != nullptr) {
    TRITONSERVER_Error* const reason = error_of(error);
    ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, reason));
    ignore(reason);
  }
}
