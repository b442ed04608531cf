// A device without arithmetic: its memory is the host's, its kernels are counted and not run, and all it is asked is done at once.
// What the host reads there is zero, and a single byte, which answers a question, is 1: weights are finite, and a loss is none.
// What torch calls beyond this is made by __init__.py: functions that succeed and do nothing.
#include <cuda_runtime_api.h>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {
constexpr size_t MEMORY = size_t(80) << 30, PAGE = 4096;

struct Block { size_t size; cudaMemoryType where; };
std::mutex guard;
std::map<uintptr_t, Block> blocks;  // by address
size_t on_device = 0;
std::atomic<uintptr_t> last_handle{1 << 16};

template <class Handle> cudaError_t new_handle(Handle *out) {
  *out = reinterpret_cast<Handle>(last_handle += 16);
  return cudaSuccess;
}

cudaMemoryType where(const void *address) {
  std::lock_guard<std::mutex> lock(guard);
  auto at = reinterpret_cast<uintptr_t>(address);
  auto after = blocks.upper_bound(at);
  if (after == blocks.begin()) return cudaMemoryTypeUnregistered;
  auto &[start, block] = *std::prev(after);
  return at - start < block.size ? block.where : cudaMemoryTypeUnregistered;
}

cudaError_t allocate(void **out, size_t size, cudaMemoryType kind) {
  *out = std::aligned_alloc(PAGE, (size / PAGE + 1) * PAGE);
  std::lock_guard<std::mutex> lock(guard);
  blocks[reinterpret_cast<uintptr_t>(*out)] = {size, kind};
  if (kind == cudaMemoryTypeDevice) on_device += size;
  return cudaSuccess;
}

cudaError_t release(void *address) {
  std::lock_guard<std::mutex> lock(guard);
  auto found = blocks.find(reinterpret_cast<uintptr_t>(address));
  if (found != blocks.end()) {
    if (found->second.where == cudaMemoryTypeDevice) on_device -= found->second.size;
    blocks.erase(found);
    std::free(address);
  }
  return cudaSuccess;
}
cudaError_t move(void *to, const void *from, size_t size) {
  if (where(from) == cudaMemoryTypeDevice && where(to) != cudaMemoryTypeDevice) std::memset(to, size == 1, size);
  else std::memmove(to, from, size);
  return cudaSuccess;
}

cudaStream_t recording = nullptr;
cudaStreamCaptureStatus status(cudaStream_t stream) {
  return recording && stream == recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
}  // namespace

extern "C" {
// Read by the tests, in this order.
struct { long kernels, products, copies, waits, allocations, pinned, graphs; } null_gpu_counts;
#define COUNT(what) __atomic_fetch_add(&null_gpu_counts.what, 1, __ATOMIC_RELAXED)

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *n) { *n = 0; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "null GPU");
  p->major = 9;
  p->warpSize = 32;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = MEMORY;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = 227 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 1 << 16;
  for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = 1024, p->maxGridSize[i] = i ? 65535 : 0x7fffffff;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: *value = 65535;
  }
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *all) { *all = MEMORY; *left = MEMORY - on_device; return cudaSuccess; }
cudaError_t cudaMalloc(void **p, size_t size) { COUNT(allocations); return allocate(p, size, cudaMemoryTypeDevice); }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned) { COUNT(pinned); return allocate(p, size, cudaMemoryTypeHost); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaFreeHost(void *p) { return release(p); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
  std::memset(a, 0, sizeof *a);
  a->type = where(p);
  a->devicePointer = a->hostPointer = const_cast<void *>(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) {
  COUNT(copies), COUNT(waits);
  return move(to, from, size);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind, cudaStream_t) {
  COUNT(copies);
  // From or to memory that is not pinned the host waits for what it calls asynchronous.
  if (where(from) == cudaMemoryTypeUnregistered || where(to) == cudaMemoryTypeUnregistered) COUNT(waits);
  return move(to, from, size);
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { COUNT(waits); return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { COUNT(waits); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { COUNT(waits); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return new_handle(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return new_handle(e); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { *ms = 1000; return cudaSuccess; }  // long, so that Triton's trials of a kernel are few
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int) { return new_handle(s); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *s) { *s = status(stream); return cudaSuccess; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *s, unsigned long long *id, cudaGraph_t *,
                                     const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *) {
  *s = status(stream);
  if (id) *id = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) { recording = stream; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) { recording = nullptr; return new_handle(graph); }
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t, unsigned long long) { return new_handle(e); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t, unsigned long long) { return new_handle(e); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { COUNT(graphs); return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
  std::memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->ptxVersion = a->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int, size_t, unsigned) { *n = 2; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; return cudaSuccess; }
static int succeed() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult *found) {
  *function = reinterpret_cast<void *>(succeed);
  if (found) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) { COUNT(kernels); return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { COUNT(kernels); return cudaSuccess; }
int __cudaLaunchKernel() { COUNT(kernels); return 0; }
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return 0; }

// The driver, as Triton's programs are loaded and launched.
int cuCtxGetCurrent(void **context) { *context = &blocks; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDeviceGet(int *device, int) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value, int which, int) { return cudaDeviceGetAttribute(value, cudaDeviceAttr(which), 0); }
int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int) { *context = &blocks; return 0; }
int cuDriverGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
int cuModuleLoad(void **module) { new_handle(module); return 0; }
int cuModuleLoadData(void **module) { new_handle(module); return 0; }
int cuModuleLoadDataEx(void **module) { new_handle(module); return 0; }
int cuModuleGetFunction(void **function) { new_handle(function); return 0; }
int cuFuncGetAttribute(int *value, int which) { *value = which ? 0 : 1024; return 0; }  // 0: threads in a block
int cuGetErrorString(int, const char **text) { *text = "an error of the null GPU"; return 0; }
int cuOccupancyMaxActiveClusters(int *n) { *n = 1; return 0; }
int cuPointerGetAttribute(const void **value, int, const void *address) { *value = address; return 0; }
int cuStreamIsCapturing(cudaStream_t stream, int *s) { *s = status(stream); return 0; }
int cuLaunchKernel() { COUNT(kernels); return 0; }
int cuLaunchKernelEx() { COUNT(kernels); return 0; }

int cublasCreate_v2(void **h) { new_handle(h); return 0; }
int cublasLtCreate(void **h) { new_handle(h); return 0; }
int cublasLtMatmulDescCreate(void **h, int, int) { new_handle(h); return 0; }
int cublasLtMatrixLayoutCreate(void **h) { new_handle(h); return 0; }
int cublasLtMatmulPreferenceCreate(void **h) { new_handle(h); return 0; }
int cublasGetMathMode(void *, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *, int *mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *, int *n) { *n = 1; return 0; }
void null_gpu_product() { COUNT(products); }
}
