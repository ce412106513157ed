// A pretended accelerator: torch's PrivateUse1 device, with its tensors in the CPU's memory.
//
// Like CUDA, it refuses operations on tensors of several devices, and under autocast it applies
// CUDA's lists of operations. Unlike CUDA, it computes with the CPU's kernels, one after another:
// it shows neither speed nor the rounding of an accelerator, nor does it run out of memory.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>
#include <set>
#include <string>

namespace {

using at::Tensor;
using c10::IntArrayRef;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);

// ---------------------------------------------------------------------- memory, guard and hooks

struct Allocator final : at::Allocator {
  static void free(void* data) { c10::free_cpu(data); }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &free, DEVICE};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(TYPE, &allocator)

// Memory of the CPU that tensors can be copied from without a wait, as page-locked memory on CUDA.
struct PinnedAllocator final : at::Allocator {
  static inline std::mutex mutex;
  static inline std::set<const void*> pointers;
  static void free(void* data) {
    const std::lock_guard lock(mutex);
    pointers.erase(data);
    c10::free_cpu(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    const std::lock_guard lock(mutex);
    if (data) pointers.insert(data);
    return {data, data, &free, c10::Device(c10::DeviceType::CPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
PinnedAllocator pinned_allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = TYPE;
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const auto generator = at::detail::createCPUGenerator();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  bool isPinnedPtr(const void* data) const override {
    const std::lock_guard lock(PinnedAllocator::mutex);
    return PinnedAllocator::pointers.count(data) > 0;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* old = storage.unsafeGetStorageImpl();
    auto data = allocator.allocate(bytes);
    if (old->data()) std::memcpy(data.get(), old->data(), std::min(bytes, old->nbytes()));
    old->set_data_ptr_noswap(std::move(data));
    old->set_nbytes(bytes);
  }
};
const bool registered = [] {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

// ----------------------------------------------------------------- operations without a fallback

Tensor on_cpu(const Tensor& x) {  // the same memory
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

Tensor empty(IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool>,
             std::optional<c10::MemoryFormat> format) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  const auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, type);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  Tensor source = from.is_cpu() ? from : on_cpu(from), target = to.is_cpu() ? to : on_cpu(to);
  at::native::copy_(target, source, non_blocking);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

const Tensor& resize_(const Tensor& x, SymIntArrayRef size,
                      std::optional<at::MemoryFormat> format) {
  return at::native::resize_(x, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor as_strided(const Tensor& x, SymIntArrayRef size, SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(x, size, stride, offset);
}

Tensor view(const Tensor& x, SymIntArrayRef size) {
  return at::native::view(x, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& x, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(x, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

at::Scalar local_scalar(const Tensor& x) {
  return at::native::_local_scalar_dense_cpu(on_cpu(x));
}

Tensor& set_tensor(Tensor& x, const Tensor& source) { return at::native::set_tensor_(x, source); }

Tensor& set_storage(Tensor& x, at::Storage source) { return at::native::set_(x, source); }

Tensor& set_storage_offset(Tensor& x, at::Storage source, int64_t offset, IntArrayRef size,
                           IntArrayRef stride) {
  return at::cpu::set_(x, source, offset, size, stride);
}

Tensor unfold(const Tensor& x, int64_t axis, int64_t size, int64_t step) {
  return at::native::unfold(x, axis, size, step);
}

Tensor convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                   SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
                   bool transposed, SymIntArrayRef output_padding, c10::SymInt groups) {
  const bool biased = bias && bias->defined();
  TORCH_CHECK(x.device() == weight.device() && (!biased || bias->device() == x.device()),
              "Expected all tensors to be on the same device (convolution)");
  const OptionalTensor b = biased ? OptionalTensor(on_cpu(*bias)) : std::nullopt;
  return at::convolution_symint(on_cpu(x), on_cpu(weight), b, stride, padding, dilation,
                                transposed, output_padding, groups)
      .to(DEVICE);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, SymIntArrayRef stride,
    SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
    SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  TORCH_CHECK(x.device() == weight.device() && gradient.device() == x.device(),
              "Expected all tensors to be on the same device (convolution_backward)");
  const c10::SymInt biases[] = {weight.sym_size(transposed ? 1 : 0)};
  auto [of_x, of_weight, of_bias] = at::convolution_backward_symint(
      on_cpu(gradient), on_cpu(x), on_cpu(weight), SymIntArrayRef(biases), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  const auto back = [](const Tensor& t) { return t.defined() ? t.to(DEVICE) : t; };
  return {back(of_x), back(of_weight), back(of_bias)};
}

// --------------------------------------------------------------------- the fallback for all others

// Indices of CUDA's indexing may be on the CPU.
bool may_be_on_cpu(const std::string& name, size_t argument) {
  for (const char* prefix : {"aten::index.", "aten::index_put", "aten::_index_put",
                             "aten::_unsafe_index"})
    if (name.rfind(prefix, 0) == 0) return argument == 1;
  return name == "aten::index" && argument == 1;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const std::string& name = op.schema().name();
  bool here = false, elsewhere = false;
  const auto look = [&](const Tensor& x) {
    if (!x.defined()) return;
    here |= x.is_privateuseone();
    elsewhere |= x.is_cpu() && x.dim() > 0;
  };
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = (*stack)[stack->size() - arguments.size() + i];
    if (may_be_on_cpu(name, i)) continue;
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& x : value.toTensorList()) look(x);
    if (value.isOptionalTensorList())
      for (const OptionalTensor& x : value.toOptionalTensorVector())
        if (x) look(*x);
  }
  TORCH_CHECK(!(here && elsewhere),
              "Expected all tensors to be on the same device, but found pretended:0 and cpu (",
              name, ")");
  at::native::cpu_fallback(op, stack);
}

const auto FALLBACK = [] { return torch::CppFunction::makeFromBoxedFunction<&fallback>(); };

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("resize_", resize_);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  // CUDA has kernels of its own for these; others would compose them of smaller operations.
  for (const char* name : {"native_group_norm", "native_group_norm_backward", "native_layer_norm",
                           "native_layer_norm_backward"})
    m.impl(name, FALLBACK());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(FALLBACK()); }

namespace at::autocast {

#define LOW(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_IF_UNSET(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOW)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_IF_UNSET)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(PROMOTE)
}

}  // namespace at::autocast
