/* Speech without its noise, hop by hop, with nothing but the C API of ONNX Runtime:
 *
 *     enhance dfstream_audio_hop.onnx < noisy.f32 > enhanced.f32
 *
 * Samples are 32-bit floats of one channel at the model's rate. The result lines up with the input and has its
 * length. The loop is what a live program would do; it takes no memory per hop. */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const OrtApi *ort;

static void check(OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "error: %s\n", ort->GetErrorMessage(status));
  exit(1);
}

/* Size of the last axis of an input: hop of 0, state of 1. */
static int64_t width(const OrtSession *session, size_t input) {
  OrtTypeInfo *type;
  const OrtTensorTypeAndShapeInfo *info;
  int64_t shape[2] = {0, 0};
  size_t axes;
  check(ort->SessionGetInputTypeInfo(session, input, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &info));
  check(ort->GetDimensionsCount(info, &axes));
  if (axes == 2) check(ort->GetDimensions(info, shape, 2));
  ort->ReleaseTypeInfo(type);
  if (shape[1] <= 0) {
    fprintf(stderr, "error: not a graph of one hop a call\n");
    exit(1);
  }
  return shape[1];
}

static long delay_of(const OrtSession *session, OrtAllocator *allocator) {
  OrtModelMetadata *metadata;
  char *text;
  check(ort->SessionGetModelMetadata(session, &metadata));
  check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "dfstream.delay_samples", &text));
  if (text == NULL) {
    fprintf(stderr, "error: not a graph that dfstream wrote\n");
    exit(1);
  }
  long delay = strtol(text, NULL, 10);
  check(ort->AllocatorFree(allocator, text));
  ort->ReleaseModelMetadata(metadata);
  return delay;
}

/* A tensor around memory of ours, which may change between calls. */
static OrtValue *tensor(float *values, int64_t count, int axes) {
  OrtMemoryInfo *memory;
  OrtValue *value;
  const int64_t matrix[2] = {1, count};
  const int64_t *shape = axes == 2 ? matrix : matrix + 1;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, values, (size_t)count * sizeof(float), shape, (size_t)axes,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
  ort->ReleaseMemoryInfo(memory);
  return value;
}

static float *zeros(int64_t count) {
  float *values = calloc((size_t)count, sizeof(float));
  if (values == NULL) abort();
  return values;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s dfstream_audio_hop.onnx < noisy.f32 > enhanced.f32\n", argv[0]);
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "error: the library is older than its header\n");
    return 1;
  }
  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtAllocator *allocator;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "dfstream", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, 1)); /* a hop is too little work to share */
  check(ort->CreateSession(env, argv[1], options, &session));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));

  const int64_t hop = width(session, 0), size = width(session, 1);
  long late = delay_of(session, allocator);
  float no_limit = 0, no_filter = 0, lsnr = 0;
  float *audio = zeros(hop), *enhanced = zeros(hop), *states[2] = {zeros(size), zeros(size)};
  const char *inputs[] = {"audio", "state", "atten_lim", "pf_beta"};
  const char *outputs[] = {"enhanced", "lsnr", "state_out"};
  /* zeros are a fresh stream; from then on the two states take turns */
  OrtValue *state[2] = {tensor(states[0], size, 2), tensor(states[1], size, 2)};
  const OrtValue *in[] = {tensor(audio, hop, 2), state[0], tensor(&no_limit, 1, 1), tensor(&no_filter, 1, 1)};
  OrtValue *out[] = {tensor(enhanced, hop, 2), tensor(&lsnr, 1, 2), state[1]};

  long owed = late; /* samples still inside once the input has ended */
  for (int turn = 0, ended = 0; !ended || owed > 0; turn = !turn) {
    size_t count = fread(audio, sizeof(float), (size_t)hop, stdin);
    ended = count < (size_t)hop;
    memset(audio + count, 0, ((size_t)hop - count) * sizeof(float));
    owed += (long)count;
    in[1] = state[turn];
    out[2] = state[!turn];
    check(ort->Run(session, NULL, inputs, in, 4, outputs, 3, out));
    long skipped = late < hop ? late : (long)hop; /* of the delay, at the beginning */
    long kept = owed - skipped < hop - skipped ? owed - skipped : (long)hop - skipped;
    late -= skipped;
    owed -= skipped + kept;
    if (fwrite(enhanced + skipped, sizeof(float), (size_t)kept, stdout) != (size_t)kept) {
      perror("error");
      return 1;
    }
  }

  for (int i = 0; i < 2; i++) ort->ReleaseValue(state[i]), free(states[i]);
  ort->ReleaseValue((OrtValue *)in[0]), ort->ReleaseValue((OrtValue *)in[2]), ort->ReleaseValue((OrtValue *)in[3]);
  ort->ReleaseValue(out[0]), ort->ReleaseValue(out[1]);
  free(audio), free(enhanced);
  ort->ReleaseSession(session), ort->ReleaseSessionOptions(options), ort->ReleaseEnv(env);
  return fflush(stdout) ? 1 : 0;
}
