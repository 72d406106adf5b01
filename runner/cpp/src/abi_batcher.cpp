// Previews and batchers of the C interface.
#include "abi.h"
#include "arforge_batcher.hpp"

struct arforge_batcher {
  arforge::Batcher batcher;
};

struct arforge_answer {
  arforge::Answer answer;
};

arforge_status arforge_partial_read(const arforge_partial* partial, arforge_partial_facts* facts) {
  return guarded([&] {
    const arforge::Partial& found = given(partial, "partial").partial;
    arforge_partial_facts& result = sized(facts, "facts");
    result = {sizeof result, static_cast<size_t>(found.first), static_cast<size_t>(found.images), found.done,
              found.steps,   static_cast<size_t>(found.rows),  static_cast<size_t>(found.columns)};
  });
}

arforge_status arforge_partial_tokens(arforge_partial* partial, const int64_t** tokens) {
  return guarded([&] {
    arforge_partial& seen = given(partial, "partial");
    given(tokens, "tokens") = nullptr;
    if (seen.tokens.empty()) {
      seen.tokens = seen.partial.tokens();
    }
    *tokens = seen.tokens.data();
  });
}

arforge_status arforge_partial_pixels(arforge_partial* partial, arforge_undecided undecided, const uint8_t** pixels,
                                      size_t* height, size_t* width) {
  return guarded([&] {
    arforge_partial& seen = given(partial, "partial");
    given(pixels, "pixels") = nullptr;
    if (undecided != ARFORGE_NEAREST && undecided != ARFORGE_GREY) {
      throw arforge::Error(arforge::Code::request,
                           arforge::text("undecided cells as ", static_cast<int>(undecided),
                                         " are unknown: use one of ARFORGE_NEAREST, ARFORGE_GREY"));
    }
    seen.pictures = seen.partial.pixels(static_cast<arforge::Undecided>(undecided));
    *pixels = seen.pictures.pixels.data();
    store(height, static_cast<size_t>(seen.pictures.height));
    store(width, static_cast<size_t>(seen.pictures.width));
  });
}

arforge_status arforge_batcher_open(arforge_runner* runner, size_t batch, size_t waiting, arforge_batcher** batcher) {
  return guarded([&] {
    given(batcher, "batcher") = nullptr;
    arforge::Runner& used = given(runner, "runner").runner;
    *batcher = new arforge_batcher{
        arforge::Batcher(used, static_cast<std::int64_t>(batch), static_cast<std::int64_t>(waiting))};
  });
}

void arforge_batcher_close(arforge_batcher* batcher) { delete batcher; }

arforge_status arforge_submit(arforge_batcher* batcher, const arforge_request* request, double timeout,
                              arforge_answer** answer) {
  return guarded([&] {
    given(answer, "answer") = nullptr;
    arforge::Batcher& open = given(batcher, "batcher").batcher;
    const auto seconds = timeout == 0 ? std::nullopt : std::optional(timeout);
    *answer = new arforge_answer{open.submit(arforge_request_of(sized(request, "request")), seconds)};
  });
}

int32_t arforge_answer_wait(const arforge_answer* answer, double seconds) {
  return answer != nullptr && answer->answer.wait(seconds) ? 1 : 0;
}

arforge_status arforge_answer_result(const arforge_answer* answer, arforge_result** result) {
  return guarded([&] {
    given(result, "result") = nullptr;
    *result = new arforge_result{given(answer, "answer").answer.get()};
  });
}

int32_t arforge_answer_cancel(arforge_answer* answer) { return answer != nullptr && answer->answer.cancel() ? 1 : 0; }

void arforge_answer_free(arforge_answer* answer) { delete answer; }
