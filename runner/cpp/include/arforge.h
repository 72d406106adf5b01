/* The C interface of the arforge runner.
 *
 * Functions that can fail return a status; arforge_last_error() says in words what went wrong in this thread's last
 * failed call. Structs start with their own size, which arforge_options_init and arforge_request_init fill in, so
 * that a library can be newer than its caller. Handles are opaque; each is freed by the function named for it.
 */
#ifndef ARFORGE_H
#define ARFORGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(ARFORGE_SHARED)
#ifdef ARFORGE_BUILDING
#define ARFORGE_API __declspec(dllexport)
#else
#define ARFORGE_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define ARFORGE_API __attribute__((visibility("default")))
#else
#define ARFORGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a function or struct here changes in a way that old callers would notice. */
#define ARFORGE_ABI_VERSION 5

typedef enum arforge_status {
  ARFORGE_OK = 0,
  ARFORGE_ERROR_ARGUMENT = 1,       /* a null pointer, or a struct whose size is not known */
  ARFORGE_ERROR_REQUEST = 2,        /* a request with arguments out of range */
  ARFORGE_ERROR_SCHEDULE = 3,       /* a schedule that cannot be compiled or breaks a rule */
  ARFORGE_CANCELLED = 4,            /* the caller cancelled between two steps */
  ARFORGE_ERROR_BUNDLE = 5,         /* no bundle, one without a graph that is asked for, or one that may not be read */
  ARFORGE_ERROR_MANIFEST = 6,       /* manifest.json is missing, no JSON, or does not follow the format */
  ARFORGE_ERROR_FORMAT_VERSION = 7, /* of another format, or with what this arforge does not run yet */
  ARFORGE_ERROR_PATH = 8,           /* a path leaves the bundle or goes through a link */
  ARFORGE_ERROR_MISSING_FILE = 9,
  ARFORGE_ERROR_FILE_SIZE = 10,
  ARFORGE_ERROR_HASH = 11,
  ARFORGE_ERROR_ENGINE = 12, /* not built, of another graph, refused by its library, or without its provider */
  ARFORGE_ERROR_MEMORY = 13,
  ARFORGE_ERROR_INTERNAL = 14,
  ARFORGE_ERROR_NUMERICS = 15,          /* a step whose logits are non-finite, or that gives tokens the model lacks */
  ARFORGE_ERROR_QUEUE_FULL = 16,        /* a batcher has as many images waiting as it takes */
  ARFORGE_ERROR_DEADLINE_EXCEEDED = 17, /* a request's time was up before its images were done */
} arforge_status;

typedef struct arforge_runner arforge_runner;
typedef struct arforge_result arforge_result;
typedef struct arforge_partial arforge_partial;
typedef struct arforge_batcher arforge_batcher;
typedef struct arforge_answer arforge_answer;

typedef struct arforge_options {
  size_t size;
  const char* target;    /* of the engine: default "onnxruntime"; also tensorrt, tensorrt-rtx */
  const char* precision; /* default NULL: that of the blocks which the bundle stores, or "fp32", of TensorRT "fp16" */
  const char* provider;  /* of ONNX Runtime: default "cpu"; also cuda, tensorrt, tensorrt-rtx */
  const char* plugin;    /* the library of the provider tensorrt-rtx, or of a target; default: its usual name */
  int32_t threads;       /* CPU threads; default 0: one for each core that the process may use */
  int32_t check_hashes;  /* default 0; otherwise every file of the bundle is read and its sha256 compared */
  int64_t look_every;    /* of TensorRT: calls that the device makes between two looks of the host, where it can;
                            0: all of an image; default -1: 8 */
} arforge_options;

/* Called after every engine call, of several that TensorRT makes by itself after the last, with the steps that all
 * images of a batch have behind them, and all steps of the request; a value other than 0 cancels the request. */
typedef int32_t (*arforge_progress)(void* user, int64_t done, int64_t steps);

/* Called after every engine call with the images that are being decoded, which hold until it returns; what it does not
 * ask for costs nothing. */
typedef void (*arforge_preview)(void* user, arforge_partial* partial);

typedef struct arforge_request {
  size_t size;
  const int64_t* classes; /* (images) */
  const uint64_t* seeds;  /* (images); default NULL: 0, 1, ... */
  size_t images;
  const char* schedule;    /* such as "zipar:16"; default NULL: the bundle's first */
  double guidance;         /* 1 is off; default NaN, here and below: the bundle's */
  double temperature;      /* 0 is greedy */
  double top_p;            /* 1 is off */
  int64_t top_k;           /* 0 is off; default -1: the bundle's */
  const double* guidances; /* (images), here and below; default NULL: the one value above for all */
  const double* temperatures;
  const double* top_ps;
  const int64_t* top_ks;
  int32_t greedy;       /* temperature 0 for all; default 0 */
  int64_t batch;        /* images decoded at a time; default 32 */
  const int64_t* known; /* tokens that stay, -1 where to decide; default NULL */
  size_t known_images;  /* 1 for all images, or one an image */
  size_t known_rows;
  size_t known_columns;
  arforge_progress progress; /* default NULL */
  arforge_preview preview;   /* default NULL */
  void* user;                /* given to progress and preview */
  const float* features;     /* in place of classes: those of all prompts, (sum of lengths, width); default NULL */
  const size_t* lengths;     /* (images) rows of each prompt's features, or its ids */
  size_t width;              /* of a row */
  const int64_t* ids; /* in place of both, where facts say id_slots: of all prompts' tokens, (sum of lengths), each
                         prompt's with the one that ends it, or, of models that read ids of their own, with
                         their template; default NULL */
  const char* unconditional;      /* here and below of models that read ids of their own. What guidance leads away from:
                                     "padded", "image" or "negative"; default NULL: the bundle's */
  const int64_t* negative_ids;    /* negative prompts, one behind another, as ids; default NULL: the bundle's */
  const size_t* negative_lengths; /* (negatives) */
  size_t negatives;               /* 1 for all images, or one an image */
  const char* prefill; /* "causal", or "bidirectional": a prompt's tokens see each other; default NULL: causal */
} arforge_request;

typedef struct arforge_facts {
  size_t size;
  int64_t classes; /* 0 where the model takes prompts */
  int64_t rows;    /* of the grid */
  int64_t columns;
  int64_t vocabulary;
  int64_t downsampling;  /* pixels a token, a side; 0 where the bundle has no tokenizer */
  int64_t feature_slots; /* rows of a prompt's features at most; 0 where the model takes none */
  int64_t feature_width; /* numbers a row */
  int64_t id_slots;      /* ids of a prompt at most; 0 where the bundle takes none */
  int64_t id_vocabulary; /* ids of the model's own are less; 0 where they are those of a text encoder */
} arforge_facts;

ARFORGE_API int32_t arforge_abi_version(void);

/* Never NULL; valid until this thread's next failed call. */
ARFORGE_API const char* arforge_last_error(void);

ARFORGE_API void arforge_options_init(arforge_options* options);
ARFORGE_API void arforge_request_init(arforge_request* request);

/* `options` may be NULL. */
ARFORGE_API arforge_status arforge_open(const char* bundle, const arforge_options* options, arforge_runner** runner);
ARFORGE_API void arforge_close(arforge_runner* runner);

/* `facts->size` must be set to sizeof(arforge_facts). */
ARFORGE_API arforge_status arforge_runner_facts(const arforge_runner* runner, arforge_facts* facts);

ARFORGE_API arforge_status arforge_generate(arforge_runner* runner, const arforge_request* request,
                                            arforge_result** result);
ARFORGE_API void arforge_result_free(arforge_result* result);

/* int64 (images, rows * columns), raster order; valid until the result is freed. */
ARFORGE_API const int64_t* arforge_result_tokens(const arforge_result* result, size_t* images, size_t* rows,
                                                 size_t* columns);
/* uint8 (images, height, width, 3); NULL where the bundle has no tokenizer. */
ARFORGE_API const uint8_t* arforge_result_pixels(const arforge_result* result, size_t* height, size_t* width);
/* Engine calls until the last image of a batch was done. */
ARFORGE_API int64_t arforge_result_steps(const arforge_result* result);
/* int64 (images), engine calls until each was done: fewer where it runs ahead on drafts; valid as the tokens are. */
ARFORGE_API const int64_t* arforge_result_passes(const arforge_result* result, size_t* images);
/* Wall clock of decoding tokens, of that inside ONNX Runtime, and of tokens to pixels. */
ARFORGE_API void arforge_result_seconds(const arforge_result* result, double* decoding, double* engine, double* images);
/* Wall clock of prompts to filled caches; nothing for classes. */
ARFORGE_API double arforge_result_condition_seconds(const arforge_result* result);

/* How a preview shows cells that are not decided yet: as a decided one that is nearest, or grey. */
typedef enum arforge_undecided { ARFORGE_NEAREST = 0, ARFORGE_GREY = 1 } arforge_undecided;

typedef struct arforge_partial_facts {
  size_t size;
  size_t first; /* of the images' places in the request */
  size_t images;
  int64_t done; /* steps that all of them have behind them */
  int64_t steps;
  size_t rows; /* of the grid */
  size_t columns;
} arforge_partial_facts;

/* `facts->size` must be set to sizeof(arforge_partial_facts). */
ARFORGE_API arforge_status arforge_partial_read(const arforge_partial* partial, arforge_partial_facts* facts);
/* int64 (images, rows * columns), raster order, -1 in cells that are not decided; valid as the partial images are. */
ARFORGE_API arforge_status arforge_partial_tokens(arforge_partial* partial, const int64_t** tokens);
/* uint8 (images, height, width, 3): one call of the image decoder; valid until the next one, as the partial images are.
 */
ARFORGE_API arforge_status arforge_partial_pixels(arforge_partial* partial, arforge_undecided undecided,
                                                  const uint8_t** pixels, size_t* height, size_t* width);

/* Decodes the requests of strangers together, on a thread of its own: what waits when the engine is free, of one
 * schedule, `batch` images at a time; each is what it would be alone. `waiting`: images that may wait. The runner must
 * outlive it, and can be used beside. */
ARFORGE_API arforge_status arforge_batcher_open(arforge_runner* runner, size_t batch, size_t waiting,
                                                arforge_batcher** batcher);
/* Answers all requests that were taken, and frees it; not from the functions of a request. */
ARFORGE_API void arforge_batcher_close(arforge_batcher* batcher);

/* From any thread. The request's numbers are copied; its functions are called on the batcher's thread, none after
 * arforge_answer_wait or arforge_answer_result say that there is an answer. `timeout`: seconds from now after which the
 * answer is an error; 0: none. ARFORGE_ERROR_QUEUE_FULL at once if the images do not fit beside those that wait. */
ARFORGE_API arforge_status arforge_submit(arforge_batcher* batcher, const arforge_request* request, double timeout,
                                          arforge_answer** answer);
/* Whether there is an answer, after at most so many seconds; 0 asks without waiting. */
ARFORGE_API int32_t arforge_answer_wait(const arforge_answer* answer, double seconds);
/* Waits for it: the request's result, which is freed by itself, or its error. */
ARFORGE_API arforge_status arforge_answer_result(const arforge_answer* answer, arforge_result** result);
/* Works until the images are done; whether that came in time. */
ARFORGE_API int32_t arforge_answer_cancel(arforge_answer* answer);
/* Cancels nothing. */
ARFORGE_API void arforge_answer_free(arforge_answer* answer);

/* Tokens (images, height / downsampling, width / downsampling) of pixels (images, height, width, 3); `tokens` must
 * have room for them: `capacity` entries. */
ARFORGE_API arforge_status arforge_encode(arforge_runner* runner, const uint8_t* pixels, size_t images, size_t height,
                                          size_t width, int64_t* tokens, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
