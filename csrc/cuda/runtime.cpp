#include "runtime.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include "kernels.h"
#include "torch_cuda.h"

namespace fused_rnn {

// ---- torch_cuda.h ----

void* find_torch_cuda_symbol(const char* name) {
  if (void* symbol = dlsym(RTLD_DEFAULT, name)) return symbol;
  // PyTorch's Python loads its libraries for itself; their symbols, and those of cuBLAS below them, are found through
  // the library that is loaded already.
  static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  return library ? dlsym(library, name) : nullptr;
}

void* torch_cuda_symbol(const char* name) {
  void* const symbol = find_torch_cuda_symbol(name);
  if (!symbol) throw std::runtime_error(std::string("this PyTorch has no function ") + name);
  return symbol;
}

// ---- runtime.h ----

namespace {

struct Found {
  Device device;
  std::string why_not;
  bool lasts;                   // the answer stays the same as long as the process runs
  unsigned* gave_up = nullptr;  // of a device that the kernels run on
};

std::string cuda_error(int error) { return cudaGetErrorString(cudaError_t(error)); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Whether there is code for a device shows when one of the kernels is loaded. Also allocates the word of gave_up_word:
// its address is the same on the host and on every GPU. On a thread of its own, which alone gets another current
// device: setting the caller's back would start CUDA on that GPU too.
cudaError_t load_kernel(int index, unsigned*& gave_up) {
  cudaError_t error = cudaSuccess;
  std::thread([&] {
    error = cudaSetDevice(index);
    cudaFuncAttributes attributes;
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, sample_kernel());
    void* word = nullptr;
    if (error == cudaSuccess)
      error = cudaHostAlloc(&word, sizeof(unsigned), cudaHostAllocPortable | cudaHostAllocMapped);
    if (error == cudaSuccess) gave_up = new (word) unsigned(0);
  }).join();
  return error;
}

Found find(int index) {
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return {{}, "there is no NVIDIA driver", false};
  if (const cudaError_t error = cudaGetDeviceCount(&count); error == cudaErrorInsufficientDriver)
    return {{},
            "the NVIDIA driver is too old: it supports CUDA " + version_text(driver) +
                ", and the extension was built with CUDA " + version_text(CUDART_VERSION),
            true};
  else if (error != cudaSuccess)
    return {{}, "CUDA does not start: " + cuda_error(error), false};
  if (index < 0 || index >= count)
    return {{}, "there is no GPU " + std::to_string(index) + " among " + std::to_string(count), true};

  int major = 0, minor = 0, sm_count = 0, shared = 0, cooperative = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, index);
  Device device{"cuda:" + std::to_string(index), 10 * major + minor, sm_count, shared};
  device.cooperative = cooperative;
  if (const std::string reason = why_not(Math::kFloat32, device.capability); !reason.empty())
    return {device, reason, true};
  for (const char* name : {"aoti_torch_get_current_cuda_stream", "torch_get_current_cuda_blas_handle",
                           "cublasSetMathMode", "cublasGemmEx"})
    if (!find_torch_cuda_symbol(name)) return {device, std::string("this PyTorch has no function ") + name, true};
  unsigned* gave_up = nullptr;
  switch (const cudaError_t error = load_kernel(index, gave_up); error) {
    case cudaSuccess: return {device, "", true, gave_up};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return {device,
              "the extension has no code for compute capability " + std::to_string(major) + "." +
                  std::to_string(minor) + " (" + cuda_error(error) + "); it was built for " + built_architectures(),
              true};
    default: return {device, "the kernels could not be loaded: " + cuda_error(error), false};
  }
}

Found found(int index) {
  static std::mutex mutex;
  static std::map<int, Found> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto entry = devices.find(index); entry != devices.end()) return entry->second;
  Found now = find(index);
  if (now.lasts) devices.emplace(index, now);
  return now;
}

}  // namespace

std::string why_not_device(int index) { return found(index).why_not; }

Device device_at(int index) {
  Found entry = found(index);
  if (!entry.why_not.empty()) throw std::runtime_error("fused_rnn's CUDA kernels cannot run: " + entry.why_not);
  return entry.device;
}

unsigned* gave_up_word(int index) {
  unsigned* const word = found(index).gave_up;
  check_gave_up(word);
  return word;
}

void* current_stream(int index) {
  static const auto get = torch_cuda_function<int (*)(int32_t, void**)>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  if (get(index, &stream) != 0)
    throw std::runtime_error("PyTorch has no current stream on GPU " + std::to_string(index));
  return stream;
}

void check_launch(int error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + " could not be launched: " + cuda_error(error));
}

}  // namespace fused_rnn
