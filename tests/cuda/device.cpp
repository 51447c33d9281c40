// A pretend CUDA device for a torch built without CUDA: its memory is the host's, its kernels are the CPU's.
//
// Every operation on tensors that say cuda:0 arrives at `on_host`, which lends them to the CPU's kernel. Tensors of two
// devices in one operation are refused, as a real device refuses them; what a real one makes the host wait for is
// reported. To be loaded before anything asks torch whether there is a device.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>

namespace {

using torch::jit::Stack;

const c10::Device GPU(c10::kCUDA, 0), HOST(c10::kCPU);
const c10::Stream STREAM(c10::Stream::DEFAULT, GPU);
std::atomic<long> launched{0};
void (*report)(const char*) = nullptr;

// What makes the host wait, since sizes or values go back to it.
const std::set<std::string> WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "histc"};
// What launches nothing: allocations and views.
const std::set<std::string> SILENT = {"empty", "empty_strided", "view", "as_strided", "_reshape_alias", "unfold", "set_"};
// Parts of the names of operations that do not even take a scalar from the host.
const std::vector<std::string> STRICT = {"index", "gather", "scatter", "embedding", "mm", "cat", "_fused", "_amp"};

void wait(const std::string& what) {
  if (report) report(what.c_str());
}

std::map<const char*, size_t> pinned;
std::mutex pinned_lock;

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* data = static_cast<char*>(std::aligned_alloc(64, (size / 64 + 1) * 64));
    std::lock_guard<std::mutex> lock(pinned_lock);
    pinned[data] = size + 1;
    return {data, data, &drop, HOST};
  }
  static void drop(void* data) {
    std::lock_guard<std::mutex> lock(pinned_lock);
    pinned.erase(static_cast<char*>(data));
    std::free(data);
  }
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> lock(pinned_lock);
    auto after = pinned.upper_bound(static_cast<const char*>(data));
    if (after == pinned.begin()) return false;
    auto [start, size] = *std::prev(after);
    return static_cast<const char*>(data) < start + size;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} pinned_memory;

// The same memory as a tensor of another device.
at::Tensor lend(const at::Tensor& tensor, c10::Device device) {
  auto storage = tensor.storage();
  void* data = const_cast<void*>(storage.data());
  c10::DataPtr shared(data, new c10::Storage(storage), [](void* x) { delete static_cast<c10::Storage*>(x); }, device);
  c10::Storage made({}, storage.nbytes(), std::move(shared), c10::GetAllocator(c10::kCPU), true);
  const auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto lent = at::detail::make_tensor<c10::TensorImpl>(std::move(made), c10::DispatchKeySet(key), tensor.dtype());
  lent.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return lent;
}

struct BelowDispatch {  // no autograd and no autocast a second time
  at::AutoDispatchBelowAutograd autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

at::Tensor to_host(const at::Tensor& tensor, const std::string& name, bool strict) {
  if (!tensor.defined()) return tensor;
  if (tensor.is_cuda()) return lend(tensor, HOST);
  TORCH_CHECK(tensor.dim() == 0 && !strict, "Expected all tensors to be on the same device: ", name, " has one on cpu");
  return tensor;
}

void on_host(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name().substr(schema.name().find(':') + 2);
  bool strict = false;
  for (const auto& part : STRICT) strict |= name.find(part) != std::string::npos;
  if (WAITS.count(name)) wait(name);
  launched += !SILENT.count(name) && name != "_local_scalar_dense";

  const size_t count = schema.arguments().size();
  const std::vector<c10::IValue> given(stack->end() - count, stack->end());
  for (size_t i = 0; i < count; ++i) {
    auto& value = *(stack->end() - count + i);
    if (value.isTensor()) {
      value = to_host(value.toTensor(), name, strict);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> lent;
      for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(to_host(tensor, name, strict));
      value = lent;
    } else if (value.isOptionalTensorList()) {  // of indices
      c10::List<std::optional<at::Tensor>> lent;
      for (const auto& tensor : value.toOptionalTensorVector())
        lent.push_back(tensor ? std::optional<at::Tensor>(to_host(*tensor, name, strict)) : std::nullopt);
      value = lent;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = HOST;
    }
  }
  {
    BelowDispatch below;
    op.callBoxed(stack);
  }
  const size_t results = schema.returns().size();
  for (size_t i = 0; i < results; ++i) {
    auto& value = *(stack->end() - results + i);
    const auto* alias = schema.returns()[i].alias_info();
    if (alias && alias->isWrite()) {  // the argument that was written to
      for (size_t j = 0; j < count; ++j) {
        const auto* other = schema.arguments()[j].alias_info();
        if (!other || !(*other == *alias)) continue;
        if (value.isTensor() && value.toTensor().sizes() != given[j].toTensor().sizes()) {  // it was resized
          const auto lent = lend(value.toTensor(), GPU);
          auto* written = given[j].toTensor().unsafeGetTensorImpl();
          written->set_storage_keep_dtype(lent.storage());
          written->set_sizes_and_strides(lent.sizes(), lent.strides(), lent.storage_offset());
        }
        value = given[j];
      }
    } else if (value.isTensor() && value.toTensor().defined()) {
      value = lend(value.toTensor(), GPU);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> lent;
      for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(lend(tensor, GPU));
      value = lent;
    }
  }
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.is_cuda() != from.is_cuda()) {
    const auto& outside = to.is_cuda() ? from : to;
    if (!non_blocking || !PinnedMemory::holds(outside.const_data_ptr()))
      wait(to.is_cuda() ? "copy from pageable memory" : "copy to the host");
  }
  ++launched;
  BelowDispatch below;
  auto lent = to.is_cuda() ? lend(to, HOST) : to;
  lent.copy_(from.is_cuda() ? lend(from, HOST) : from);
  return to;
}

// Attention by its formula: the CPU's own choice would be a kernel that only a CPU has.
void choose_attention(const c10::OperatorHandle& op, Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  stack->emplace_back(int64_t{0});
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy);
  m.impl("_fused_sdp_choice", torch::CppFunction::makeFromBoxedFunction<&choose_attention>());
  // Foreach operations are one launch; torch's own fallback for them is a loop.
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames())
    if (op.name.rfind("aten::_foreach_", 0) == 0)
      m.impl((op.name.substr(6) + (op.overload_name.empty() ? "" : "." + op.overload_name)).c_str(),
             torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return GPU; }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};
const bool guarded = [] {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(new Guard());
  return true;
}();

}  // namespace

namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

extern "C" void watch(void (*callback)(const char*)) { report = callback; }
extern "C" long launches() { return launched; }
