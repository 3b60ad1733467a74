// oneDNN's convolution, gradient of PReLU and matrix product, as one handler that XLA calls on its own buffers.
//
// What to compute is a list of integers, the attribute `operation` of XLA's custom call: kind, dtype, then sizes (see
// `make_program`). All of oneDNN's work is done by one thread, so that there is one team of OpenMP threads whoever
// calls; the handler waits for it. No Python is involved: a process may end, or fork, at any moment.
//
// The few declarations of XLA's FFI (xla/ffi/api/c_api.h, whose structures only grow at their ends) and of oneDNN's C
// API (https://uxlfoundation.github.io/oneDNN, version 3) stand here, so that building needs neither.

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// ---- XLA's FFI

namespace ffi {

constexpr int kMajor = 0, kMinor = 3;  // the version of what is declared here
constexpr int kMetadata = 1, kExecute = 3, kArray = 1, kS64 = 5, kInternal = 13;

struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Error;

struct ErrorArguments {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int code;
};

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int dtype;
  void* data;
};

struct Buffers {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  Buffer** buffers;
};

struct Name {
  const char* data;
  size_t size;
};

struct Array {
  int dtype;
  size_t size;
  const void* data;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  Name** names;
  void** values;
};

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  int stage;
  Buffers inputs, outputs;
  Attributes attributes;
};

}  // namespace ffi

namespace {

// ---- oneDNN's C API

using Object = void*;
using Sizes = std::vector<int64_t>;

struct Argument {
  int index;
  Object memory;
};

struct OneDnnVersion {
  int major, minor, patch;
};

constexpr int kCpu = 1, kInOrder = 1, kAny = 1, kDirect = 1, kForwardTraining = 64, kFloat32 = 3;
constexpr int kWeightsMd = 131, kDiffWeightsMd = 132;
enum { kSrc = 1, kDst = 17, kWeights = 33, kBias = 41 };
enum { kDiffSrc = 129, kDiffDst = 145, kDiffWeights = 161, kDiffBias = 169 };

struct {
  const OneDnnVersion* (*version)();
  int (*engine_create)(Object*, int, size_t);
  int (*stream_create)(Object*, Object, unsigned);
  int (*stream_wait)(Object);
  int (*memory_desc_create_with_strides)(Object*, int, const int64_t*, int, const int64_t*);
  int (*memory_desc_create_with_tag)(Object*, int, const int64_t*, int, int);
  int (*memory_desc_destroy)(Object);
  int (*memory_create)(Object*, Object, Object, void*);
  int (*memory_set_data_handle)(Object, void*);
  int (*memory_destroy)(Object);
  int (*primitive_create)(Object*, Object);
  int (*primitive_execute)(Object, Object, int, const Argument*);
  int (*primitive_destroy)(Object);
  Object (*primitive_desc_query_md)(Object, int, int);
  int (*primitive_desc_destroy)(Object);
  int (*reorder_primitive_desc_create)(Object*, Object, Object, Object, Object, Object);
  int (*convolution_forward_primitive_desc_create)(Object*, Object, int, int, Object, Object, Object, Object,
                                                   const int64_t*, const int64_t*, const int64_t*, const int64_t*,
                                                   Object);
  int (*convolution_backward_data_primitive_desc_create)(Object*, Object, int, Object, Object, Object, const int64_t*,
                                                         const int64_t*, const int64_t*, const int64_t*, Object,
                                                         Object);
  int (*convolution_backward_weights_primitive_desc_create)(Object*, Object, int, Object, Object, Object, Object,
                                                            const int64_t*, const int64_t*, const int64_t*,
                                                            const int64_t*, Object, Object);
  int (*prelu_forward_primitive_desc_create)(Object*, Object, int, Object, Object, Object, Object);
  int (*prelu_backward_primitive_desc_create)(Object*, Object, Object, Object, Object, Object, Object, Object, Object);
  int (*matmul_primitive_desc_create)(Object*, Object, Object, Object, Object, Object, Object);
} dnnl;

bool load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return false;
  bool complete = true;
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    complete = complete && function;
  };
#define FIND(name) find(dnnl.name, "dnnl_" #name)
  FIND(version);
  FIND(engine_create);
  FIND(stream_create);
  FIND(stream_wait);
  FIND(memory_desc_create_with_strides);
  FIND(memory_desc_create_with_tag);
  FIND(memory_desc_destroy);
  FIND(memory_create);
  FIND(memory_set_data_handle);
  FIND(memory_destroy);
  FIND(primitive_create);
  FIND(primitive_execute);
  FIND(primitive_destroy);
  FIND(primitive_desc_query_md);
  FIND(primitive_desc_destroy);
  FIND(reorder_primitive_desc_create);
  FIND(convolution_forward_primitive_desc_create);
  FIND(convolution_backward_data_primitive_desc_create);
  FIND(convolution_backward_weights_primitive_desc_create);
  FIND(prelu_forward_primitive_desc_create);
  FIND(prelu_backward_primitive_desc_create);
  FIND(matmul_primitive_desc_create);
#undef FIND
  return complete && dnnl.version()->major == 3;
}

void check(int status) {
  if (status) throw std::runtime_error("oneDNN returned status " + std::to_string(status));
}

// ---- programs: some of oneDNN's primitives, and the memory that they read and write

using Destroy = int (*)(Object);
using Owned = std::unique_ptr<void, Destroy>;

template <typename Create, typename... Arguments>
Owned make(Destroy destroy, Create create, Arguments... arguments) {
  Object object = nullptr;
  check(create(&object, arguments...));
  return Owned(object, destroy);
}

template <typename Create, typename... Arguments>
Owned describe(Create create, Arguments... arguments) {
  return make(dnnl.primitive_desc_destroy, create, arguments...);
}

Owned layout(const Sizes& sizes, const Sizes& strides, int dtype) {
  return make(dnnl.memory_desc_destroy, dnnl.memory_desc_create_with_strides, int(sizes.size()), sizes.data(), dtype,
              strides.data());
}

// [B, H, W, C] in memory; oneDNN's order of axes is B, C, H, W.
Owned image_layout(int64_t b, int64_t h, int64_t w, int64_t c, int dtype) {
  return layout({b, c, h, w}, {h * w * c, 1, w * c, c}, dtype);
}

class Program {
 public:
  Program(Object engine, Object stream) : engine_(engine), stream_(stream) {}

  // Memory of XLA's: the inputs in their order, then the outputs.
  Object buffer(const Owned& layout) { return buffers_.emplace_back(memory(layout.get(), nullptr)); }

  Object scratch(Object layout) { return memory(layout, reinterpret_cast<void*>(-1)); }  // allocated by oneDNN

  void add(const Owned& description, std::vector<Argument> arguments) {
    owned_.push_back(make(dnnl.primitive_destroy, dnnl.primitive_create, description.get()));
    steps_.emplace_back(owned_.back().get(), std::move(arguments));
  }

  void add_reorder(Object from, Object from_layout, Object to, Object to_layout) {
    add(describe(dnnl.reorder_primitive_desc_create, from_layout, engine_, to_layout, engine_, nullptr),
        {{kSrc, from}, {kDst, to}});
  }

  void run(const std::vector<void*>& data) {
    if (data.size() != buffers_.size()) throw std::runtime_error("the number of buffers does not fit the operation");
    for (size_t i = 0; i < data.size(); ++i) check(dnnl.memory_set_data_handle(buffers_[i], data[i]));
    for (const auto& [primitive, arguments] : steps_)
      check(dnnl.primitive_execute(primitive, stream_, int(arguments.size()), arguments.data()));
    check(dnnl.stream_wait(stream_));
  }

 private:
  Object memory(Object layout, void* data) {
    owned_.push_back(make(dnnl.memory_destroy, dnnl.memory_create, layout, engine_, data));
    return owned_.back().get();
  }

  Object engine_, stream_;
  std::vector<Owned> owned_;
  std::vector<Object> buffers_;
  std::vector<std::pair<Object, std::vector<Argument>>> steps_;
};

enum Kind { kForward, kInputGradient, kKernelGradient, kPReLUGradient, kProduct };

// Images [B, H, W, I], kernel [h, w, I / groups, O], results [B, H', W', O], bias float32 [O]. The kernel has the layout
// that oneDNN likes best, and is reordered on the way in or out.
//   forward: images, kernel (, bias) -> results
//   input gradient: gradient of results, kernel -> gradient of images
//   kernel gradient: images, gradient of results -> gradient of kernel (, of bias)
void make_convolution(Program& program, Object engine, int kind, int dtype, const int64_t* n, int64_t groups) {
  const int64_t batch = n[0], height = n[1], width = n[2], inputs = n[3], down = n[4], across = n[5], outputs = n[6];
  const Owned images = image_layout(batch, height, width, inputs, dtype);
  const Owned results = image_layout(batch, n[7], n[8], outputs, dtype);
  const int64_t share = inputs / groups;
  Sizes oihw = {outputs / groups, share, down, across};
  Sizes steps = {1, outputs, across * share * outputs, share * outputs};
  if (groups > 1) {
    oihw.insert(oihw.begin(), groups);
    steps.insert(steps.begin(), outputs / groups);
  }
  const Owned kernel = layout(oihw, steps, dtype);
  const Owned any = make(dnnl.memory_desc_destroy, dnnl.memory_desc_create_with_tag, int(oihw.size()), oihw.data(),
                         dtype, int(kAny));
  const bool has_bias = n[15];
  const Owned bias = has_bias ? layout({outputs}, {1}, kFloat32) : Owned(nullptr, dnnl.memory_desc_destroy);
  const int64_t *strides = n + 9, *before = n + 11, *after = n + 13, dilation[] = {0, 0};

  const Owned forward =
      describe(dnnl.convolution_forward_primitive_desc_create, engine, int(kForwardTraining), int(kDirect),
               images.get(), any.get(), bias.get(), results.get(), strides, dilation, before, after, nullptr);
  if (kind == kForward) {
    const Object liked = dnnl.primitive_desc_query_md(forward.get(), kWeightsMd, 0);
    const Object x = program.buffer(images), k = program.buffer(kernel), inner = program.scratch(liked);
    std::vector<Argument> arguments = {{kSrc, x}, {kWeights, inner}};
    if (has_bias) arguments.push_back({kBias, program.buffer(bias)});
    arguments.push_back({kDst, program.buffer(results)});
    program.add_reorder(k, kernel.get(), inner, liked);
    program.add(forward, std::move(arguments));
  } else if (kind == kInputGradient) {
    const Owned backward =
        describe(dnnl.convolution_backward_data_primitive_desc_create, engine, int(kDirect), images.get(), any.get(),
                 results.get(), strides, dilation, before, after, forward.get(), nullptr);
    const Object liked = dnnl.primitive_desc_query_md(backward.get(), kWeightsMd, 0);
    const Object y = program.buffer(results), k = program.buffer(kernel), inner = program.scratch(liked);
    const Object x = program.buffer(images);
    program.add_reorder(k, kernel.get(), inner, liked);
    program.add(backward, {{kDiffDst, y}, {kWeights, inner}, {kDiffSrc, x}});
  } else {
    const Owned backward =
        describe(dnnl.convolution_backward_weights_primitive_desc_create, engine, int(kDirect), images.get(),
                 any.get(), bias.get(), results.get(), strides, dilation, before, after, forward.get(), nullptr);
    const Object liked = dnnl.primitive_desc_query_md(backward.get(), kDiffWeightsMd, 0);
    const Object x = program.buffer(images), y = program.buffer(results), k = program.buffer(kernel);
    const Object inner = program.scratch(liked);
    std::vector<Argument> arguments = {{kSrc, x}, {kDiffDst, y}, {kDiffWeights, inner}};
    if (has_bias) arguments.push_back({kDiffBias, program.buffer(bias)});
    program.add(backward, std::move(arguments));
    program.add_reorder(inner, liked, k, kernel.get());
  }
}

// x [B, H, W, C], slope float32 [C], gradient of the result -> gradients of x and of the slope.
void make_prelu_gradient(Program& program, Object engine, int dtype, const int64_t* n) {
  const Owned images = image_layout(n[0], n[1], n[2], n[3], dtype);
  const Owned slopes = layout({1, n[3], 1, 1}, {n[3], 1, 1, 1}, kFloat32);
  const Object image = images.get(), slope = slopes.get();
  const Owned forward = describe(dnnl.prelu_forward_primitive_desc_create, engine, int(kForwardTraining), image, slope,
                                 image, nullptr);
  const Owned backward = describe(dnnl.prelu_backward_primitive_desc_create, engine, image, slope, image, slope, image,
                                  forward.get(), nullptr);
  const Object x = program.buffer(images), s = program.buffer(slopes), from = program.buffer(images);
  const Object to_x = program.buffer(images), to_s = program.buffer(slopes);
  program.add(backward, {{kSrc, x}, {kWeights, s}, {kDiffDst, from}, {kDiffSrc, to_x}, {kDiffWeights, to_s}});
}

// a [m, k], or [k, m] where it is transposed, and b [k, n] -> float32 [m, n].
void make_product(Program& program, Object engine, int dtype, const int64_t* n) {
  const int64_t rows = n[0], inner = n[1], columns = n[2];
  const bool transposed = n[3];
  const Owned a = layout({rows, inner}, transposed ? Sizes{1, rows} : Sizes{inner, 1}, dtype);
  const Owned b = layout({inner, columns}, {columns, 1}, dtype);
  const Owned result = layout({rows, columns}, {columns, 1}, kFloat32);
  const Owned description = describe(dnnl.matmul_primitive_desc_create, engine, a.get(), b.get(), nullptr,
                                     result.get(), nullptr);
  const Object first = program.buffer(a), second = program.buffer(b), to = program.buffer(result);
  program.add(description, {{kSrc, first}, {kWeights, second}, {kDst, to}});
}

// The operation: kind, dtype (dnnl_data_type_t), and then of
//   a convolution: B, H, W, I, h, w, O, H', W', strides down and right, padding top, left, bottom, right, whether bias
//     (, groups, which divide I and O; a list without them has one)
//   PReLU's gradient: B, H, W, C
//   a product: m, k, n, whether a is transposed
std::unique_ptr<Program> make_program(Object engine, Object stream, const Sizes& operation) {
  auto program = std::make_unique<Program>(engine, stream);
  const size_t size = operation.size();
  const int kind = size ? int(operation[0]) : -1, dtype = size > 1 ? int(operation[1]) : 0;
  const int64_t* sizes = operation.data() + 2;
  const int64_t groups = size == 19 ? sizes[16] : 1;
  if (kind >= kForward && kind <= kKernelGradient && (size == 18 || size == 19) && groups > 0)
    make_convolution(*program, engine, kind, dtype, sizes, groups);
  else if (kind == kPReLUGradient && size == 6)
    make_prelu_gradient(*program, engine, dtype, sizes);
  else if (kind == kProduct && size == 6)
    make_product(*program, engine, dtype, sizes);
  else
    throw std::runtime_error("there is no such operation");
  return program;
}

// ---- the thread that does oneDNN's work

struct Task {
  const Sizes& operation;
  const std::vector<void*>* data;  // null: only make the program
  std::string error = {};
  bool done = false;
  std::condition_variable finished = {};
};

class Worker {
 public:
  // Waits until the task is done.
  void run(Task& task) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (closed_) {
      task.error = "the process is ending";
      return;
    }
    if (!started_) start();
    queue_.push_back(&task);
    changed_.notify_all();
    task.finished.wait(lock, [&] { return task.done; });
  }

  // At exit: lets the task that runs come to its end, and takes no other.
  void close() {
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    for (Task* task : queue_) finish(*task, "the process is ending");
    queue_.clear();
    changed_.wait(lock, [&] { return !busy_; });
  }

  // Around a fork, which must not happen amid a task: oneDNN's own locks would stay locked in the child.
  void pause() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++pausing_;
    changed_.wait(lock, [&] { return !busy_; });
    lock.release();
  }

  void resume() {
    --pausing_;
    changed_.notify_all();
    mutex_.unlock();
  }

 private:
  void start() {
    sigset_t all, before;  // signals are the other threads'
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread([this] { loop(); }).detach();
      started_ = true;
    } catch (...) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!started_) throw std::runtime_error("no thread could be started");
  }

  void loop() {
#if defined(__SSE2__)
    _mm_setcsr(_mm_getcsr() | 0x8040);  // denormal numbers are 0, as in XLA's threads; OpenMP's threads inherit it
#endif
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return !queue_.empty() && !pausing_; });
      Task& task = *queue_.front();
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      std::string error;
      try {
        Program& program = find(task.operation);
        if (task.data) program.run(*task.data);
      } catch (const std::exception& exception) {
        error = exception.what();
      }
      lock.lock();
      busy_ = false;
      finish(task, error);
      if (closed_ || pausing_) changed_.notify_all();
    }
  }

  static void finish(Task& task, const std::string& error) {
    task.error = error;
    task.done = true;
    task.finished.notify_one();
  }

  Program& find(const Sizes& operation) {
    if (!engine_) {
      check(dnnl.engine_create(&engine_, kCpu, 0));
      check(dnnl.stream_create(&stream_, engine_, kInOrder));
    }
    auto found = programs_.find(operation);
    if (found == programs_.end()) {
      auto program = make_program(engine_, stream_, operation);
      if (programs_.size() >= 1024) programs_.clear();  // shapes of long ago
      found = programs_.emplace(operation, std::move(program)).first;
    }
    return *found->second;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task*> queue_;
  bool started_ = false, busy_ = false, closed_ = false;
  int pausing_ = 0;
  Object engine_ = nullptr, stream_ = nullptr;
  std::map<Sizes, std::unique_ptr<Program>> programs_;
};

Worker* worker = nullptr;  // never destroyed: its thread does not end

void run(Task& task) {
  try {
    worker->run(task);
  } catch (const std::exception& exception) {
    task.error = exception.what();
  }
}

Sizes operation_of(const ffi::Attributes& attributes) {
  for (int64_t i = 0; i < attributes.size; ++i) {
    const ffi::Name& name = *attributes.names[i];
    if (std::string(name.data, name.size) != "operation" || attributes.types[i] != ffi::kArray) continue;
    const auto& array = *static_cast<const ffi::Array*>(attributes.values[i]);
    if (array.dtype != ffi::kS64) continue;
    const auto* numbers = static_cast<const int64_t*>(array.data);
    return Sizes(numbers, numbers + array.size);
  }
  return {};
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int jax_arcface_interface() { return 1; }  // what onednn.py expects

// Loads oneDNN; gives 1000 major + minor of its version, or 0 where it cannot be loaded. To be called once.
__attribute__((visibility("default"))) int jax_arcface_open(const char* path) {
  if (!load(path)) return 0;
  worker = new Worker;
  pthread_atfork([] { worker->pause(); }, [] { worker->resume(); }, [] { worker = new Worker; });
  std::atexit([] { worker->close(); });
  return 1000 * dnnl.version()->major + dnnl.version()->minor;
}

// Whether oneDNN can do the operation.
__attribute__((visibility("default"))) int jax_arcface_supports(const int64_t* numbers, size_t size) {
  const Sizes operation(numbers, numbers + size);
  Task task = {operation, nullptr};
  run(task);
  return task.error.empty();
}

__attribute__((visibility("default"))) ffi::Error* jax_arcface_call(ffi::CallFrame* frame) {
  if (frame->extensions && frame->extensions->type == ffi::kMetadata) {  // XLA asks for which version this was made
    auto& version = reinterpret_cast<ffi::MetadataExtension*>(frame->extensions)->metadata->version;
    version.major = ffi::kMajor;
    version.minor = ffi::kMinor;
    return nullptr;
  }
  if (frame->stage != ffi::kExecute) return nullptr;
  const Sizes operation = operation_of(frame->attributes);
  std::vector<void*> data;
  for (const ffi::Buffers* some : {&frame->inputs, &frame->outputs})
    for (int64_t i = 0; i < some->size; ++i) data.push_back(some->buffers[i]->data);
  Task task = {operation, &data};
  run(task);
  if (task.error.empty()) return nullptr;
  const std::string message = "jax_arcface, oneDNN: " + task.error;
  ffi::ErrorArguments arguments = {sizeof(arguments), nullptr, message.c_str(), ffi::kInternal};
  return frame->api->create_error(&arguments);
}

}  // extern "C"
