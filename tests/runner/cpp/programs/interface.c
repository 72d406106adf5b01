/* The C interface from C99: a generation, its facts, an error, a cancelled request, as a C caller writes them. */
#include <arforge.h>
#include <stdio.h>

static int32_t stop_after_two(void* user, int64_t done, int64_t steps) {
  *(int64_t*)user = steps;
  return done == 2;
}

int main(int count, char** words) {
  arforge_runner* runner = NULL;
  arforge_result* result = NULL;
  arforge_facts facts = {0};
  arforge_options options;
  arforge_request request;
  const int64_t classes[2] = {1, 2};
  size_t images, rows, columns, index;
  const int64_t* tokens;
  int64_t steps = 0;
  arforge_status status;
  if (count != 2 || arforge_abi_version() != ARFORGE_ABI_VERSION) {
    return 2;
  }
  facts.size = sizeof facts;
  arforge_options_init(&options);
  options.threads = 1;
  if (arforge_open(words[1], &options, &runner) != ARFORGE_OK || arforge_runner_facts(runner, &facts) != ARFORGE_OK) {
    fprintf(stderr, "%s\n", arforge_last_error());
    return 1;
  }
  arforge_request_init(&request);
  request.classes = classes;
  request.images = 2;
  if (arforge_generate(runner, &request, &result) != ARFORGE_OK) {
    fprintf(stderr, "%s\n", arforge_last_error());
    return 1;
  }
  tokens = arforge_result_tokens(result, &images, &rows, &columns);
  for (index = 0; index < images * rows * columns; index++) {
    printf("%lld ", (long long)tokens[index]);
  }
  printf("\n%lld classes\n", (long long)facts.classes);
  arforge_result_free(result);
  request.progress = stop_after_two;
  request.user = &steps;
  status = arforge_generate(runner, &request, &result);
  printf("%d of %lld: ", (int)status, (long long)steps);
  printf("%s\n", arforge_last_error());
  arforge_close(runner);
  printf("%d\n", (int)arforge_open("nowhere", NULL, &runner));
  return 0;
}
