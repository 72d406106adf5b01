// The backend of Triton: a model is a bundle, in the folder of its version. What the server's dynamic batcher brings is
// decoded together where its schedule is one, and each image is what it is alone.
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "arforge_batcher.hpp"
#include "requests.h"

namespace {

constexpr double LOOK = 0.05;             // seconds between looks whether requests are cancelled
constexpr std::int64_t WAITING = 1 << 20; // images: the server has a queue of its own

using Json = nlohmann::json;

// Of a configuration, which the server gives as JSON: `parameters { key: NAME value: { string_value: TEXT } }`.
std::string parameter(const Json& config, const char* name, const char* usual) {
  return config.value(Json::json_pointer(std::string("/parameters/") + name + "/string_value"), std::string(usual));
}

Json config_of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const char* text = nullptr;
  std::size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
  Json config = Json::parse(text, text + size);
  check(TRITONSERVER_MessageDelete(message));
  return config;
}

arforge::Runner opened(TRITONBACKEND_Model* model, const Json& config) {
  const char* folder = nullptr;
  TRITONBACKEND_ArtifactType type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
  check(TRITONBACKEND_ModelRepository(model, &type, &folder));
  std::uint64_t version = 0;
  check(TRITONBACKEND_ModelVersion(model, &version));
  arforge::Options options;
  options.target = parameter(config, "target", "onnxruntime");
  options.precision = parameter(config, "precision", "");
  options.provider = parameter(config, "provider", "cpu");
  options.threads = std::stoi(parameter(config, "threads", "0"));
  const auto place = std::filesystem::path(folder) / std::to_string(version);
  return arforge::Runner::open(place / parameter(config, "bundle", "model.bundle"), options);
}

struct Model {
  Model(TRITONBACKEND_Model* model, const Json& config)
      : runner(opened(model, config)),
        batcher(runner, std::max<std::int64_t>(1, config.value("max_batch_size", 1)), WAITING) {}

  arforge::Runner runner;
  arforge::Batcher batcher;
};

struct Running {
  TRITONBACKEND_Request* request;
  arforge::Answer answer;
};

std::uint64_t now() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// Of a batch, for the server's statistics.
struct Times {
  TRITONBACKEND_ModelInstance* instance;
  std::uint64_t start = now();

  void release(TRITONBACKEND_Request* request, bool success) const {
    const std::uint64_t end = now();
    ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, success, start, start, end, end));
    ignore(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
  }
};

void cancel_as_asked(std::vector<Running>& running) {
  for (auto& [request, answer] : running) {
    bool gone = false;
    ignore(TRITONBACKEND_RequestIsCancelled(request, &gone));
    if (gone) {
      answer.cancel();
    }
  }
}

void answer_all(std::vector<Running>& running, const Times& times) {
  while (!running.empty()) {
    Running& next = running.front();
    while (!next.answer.wait(LOOK)) {
      cancel_as_asked(running);
    }
    bool success = false;
    try {
      success = respond(next.request, next.answer.get());
    } catch (const std::exception& error) {
      refuse(next.request, error);
    }
    times.release(next.request, success);
    running.erase(running.begin());
  }
}

void execute(Model& model, const Times& times, TRITONBACKEND_Request** requests, std::uint32_t count) {
  std::vector<Running> running;
  std::uint64_t images = 0;
  for (std::uint32_t index = 0; index < count; index++) {
    try {
      const TritonRequest given(requests[index]);
      running.push_back({requests[index], model.batcher.submit(given.request)});
      images += given.request.seeds.size();
    } catch (const std::exception& error) {
      refuse(requests[index], error);
      times.release(requests[index], false);
    }
  }
  answer_all(running, times);
  if (images > 0) {
    const std::uint64_t end = now();
    ignore(
        TRITONBACKEND_ModelInstanceReportBatchStatistics(times.instance, images, times.start, times.start, end, end));
  }
}

// Runs `work`; what it throws becomes the server's error.
template <class Work>
TRITONSERVER_Error* guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return error_of(error);
  }
}

} // namespace

extern "C" {

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] { check(TRITONBACKEND_ModelSetState(model, new Model(model, config_of(model)))); });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    void* state = nullptr;
    check(TRITONBACKEND_ModelState(model, &state));
    delete static_cast<Model*>(state);
  });
}

// Answers and releases every request: an error from here would leave them to the server.
TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                           TRITONBACKEND_Request** requests,
                                                                           const std::uint32_t count) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    void* state = nullptr;
    check(TRITONBACKEND_ModelState(model, &state));
    execute(*static_cast<Model*>(state), Times{instance}, requests, count);
  });
}
}
