// A device for machines that have none but the CPU: torch's PrivateUse1 key, with the host's memory and the
// CPU's kernels, whose tensors and the CPU's do not mix. What forgets to move a tensor fails here as it would
// on a GPU. float64 can be taken away from it, as on Apple's GPUs.
#include <torch/extension.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstring>
#include <map>
#include <set>

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);
bool has_float64 = true;
bool has_generators = true;  // that torch.Generator makes; random numbers there are without them, too
std::map<std::string, int64_t> transfers;  // since the last clear(): "to device", "to host", "read"

// --- memory, guard, random numbers ---------------------------------------------------------------------------

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = c10::alloc_cpu(size);
    return {data, data, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<KIND> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Random final : at::CPUGeneratorImpl {
  Random() : at::CPUGeneratorImpl(42) { device_ = DEVICE; }
};
// the kernels are the CPU's and take a generator of the CPU's
at::Generator random_numbers = at::detail::createCPUGenerator(42);

void resize_storage(const c10::Storage& storage, size_t size) {
  auto fresh = memory.allocate(size);
  std::memcpy(fresh.get(), storage.data(), std::min(size, storage.nbytes()));
  storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
  storage.unsafeGetStorageImpl()->set_nbytes(size);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  bool isPinnedPtr(const void*) const override { return false; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(has_generators, "this device makes no generators");
    return at::make_generator<Random>();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    resize_storage(storage, size);
  }
};

// --- one tensor seen from both sides ---------------------------------------------------------------------------

bool is_here(const Tensor& t) { return t.defined() && t.device().type() == KIND; }

void same_view(const Tensor& t, const Tensor& of) {
  t.unsafeGetTensorImpl()->set_storage_offset(of.storage_offset());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(of.sizes(), of.strides());
  if (of.is_conj()) t._set_conj(true);
  if (of.is_neg()) t._set_neg(true);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const auto kind = type.value_or(c10::typeMetaToScalarType(c10::get_default_dtype()));
  TORCH_CHECK_TYPE(has_float64 || (kind != at::kDouble && kind != at::kComplexDouble),
                   "Cannot convert a tensor to float64: the second device has no such type");
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           kind);
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout> layout,
             std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  std::vector<int64_t> stride(size.size());
  int64_t step = 1;
  for (size_t i = size.size(); i-- > 0;) {
    stride[i] = step;
    step *= std::max<int64_t>(size[i], 1);
  }
  auto made = empty_strided(size, stride, type, layout, device, pinned);
  if (format && *format != at::MemoryFormat::Preserve && *format != at::MemoryFormat::Contiguous)
    made.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return made;
}

// the memory of a tensor of this device as a tensor of the CPU
Tensor on_host(const Tensor& t) {
  if (!is_here(t)) return t;
  c10::Storage kept = t.storage();
  auto data = c10::InefficientStdFunctionContext::makeDataPtr(
      kept.mutable_data(), [kept](void*) {}, c10::Device(at::kCPU));
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), kept.nbytes(),
                                                             std::move(data), nullptr, false));
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                       c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  same_view(made, t);
  return made;
}

// what a CPU kernel gave as a tensor of this device: a view where it shares memory with what it was given
Tensor from_host(const Tensor& result, const std::vector<Tensor>& given) {
  if (!result.defined() || is_here(result)) return result;
  for (const auto& t : given) {
    if (!is_here(t) || !result.has_storage() || !result.storage().nbytes()) continue;
    if (result.storage().data() != t.storage().data()) continue;
    auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(),
                                                         result.dtype());
    same_view(view, result);
    return view;
  }
  const auto plain = result.resolve_conj().resolve_neg();
  auto made = empty_strided(plain.sizes(), plain.strides(), plain.scalar_type(), {}, {}, {});
  on_host(made).copy_(plain);
  return made;
}

void resize_here(const Tensor& t, IntArrayRef size) {
  const auto needed = at::detail::computeStorageNbytesContiguous(size, t.dtype().itemsize(), t.storage_offset());
  if (t.storage().nbytes() < needed) resize_storage(t.storage(), needed);
  t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
}

[[noreturn]] void refuse(const std::string& name, const Tensor& t) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, second:0 and ",
              t.device(), " (", name, ", a tensor of shape ", t.sizes(), ")");
}

// --- every operator: the CPU's, on the same memory -----------------------------------------------------------------

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = schema.operator_name().name;
  const auto count = schema.arguments().size(), begin = stack->size() - count;
  const std::vector<c10::IValue> arguments(stack->begin() + begin, stack->end());
  const bool joins = name == "aten::cat" || name == "aten::stack";
  std::vector<Tensor> given;
  std::vector<std::pair<Tensor, Tensor>> outputs;  // empty ones, which the kernel makes larger

  auto taken = [&](const Tensor& t, const c10::Argument& argument) {
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    if (t.defined() && !is_here(t)) {
      // numbers and indices may lie on the CPU, as for a GPU
      const bool number = t.device().is_cpu() && t.dim() == 0 && !written && !joins;
      const bool index = t.device().is_cpu() && argument.name() == "indices";
      if (!number && !index) refuse(name, t);
    }
    if (t.defined()) given.push_back(t);
    if (written && is_here(t) && !t.numel()) {
      outputs.emplace_back(t, at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU)));
      return outputs.back().second;
    }
    return on_host(t);
  };
  for (size_t i = 0; i < count; i++) {
    auto& value = (*stack)[begin + i];
    const auto& argument = schema.arguments()[i];
    if (value.isTensor()) {
      value = taken(value.toTensor(), argument);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor t : value.toTensorList()) list.push_back(taken(t, argument));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor> t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<Tensor>(taken(*t, argument)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
    if (argument.type()->str().find("Generator") != std::string::npos) value = random_numbers;
  }
  {
    c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  for (auto& [own, made] : outputs) {
    resize_here(own, made.sizes());
    if (!made.numel()) continue;
    own.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides());
    on_host(own).copy_(made);
  }
  const auto first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); i++) {
    auto& value = (*stack)[first + i];
    const auto* returned = schema.returns()[i].alias_info();
    if (returned && returned->isWrite()) {  // the argument that was written
      for (size_t j = 0; j < count; j++) {
        const auto* info = schema.arguments()[j].alias_info();
        if (info && info->isWrite() && info->beforeSets() == returned->beforeSets()) value = arguments[j];
      }
    } else if (value.isTensor()) {
      value = from_host(value.toTensor(), given);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor t : value.toTensorList()) list.push_back(from_host(t, given));
      value = list;
    }
  }
}

// --- what the fallback cannot do ------------------------------------------------------------------------------------

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (is_here(from) != is_here(to)) transfers[is_here(to) ? "to device" : "to host"]++;
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  on_host(to).copy_(on_host(from));
  return to;
}
Tensor& copy_(Tensor& to, const Tensor& from, bool wait) {
  copy_from(from, to, wait);
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) const_cast<Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}
at::Scalar read_number(const Tensor& t) {
  transfers["read"]++;
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  return at::_local_scalar_dense(on_host(t));
}
const Tensor& resize_(const Tensor& t, IntArrayRef size, std::optional<at::MemoryFormat> format) {
  resize_here(t, size);
  if (format && *format != at::MemoryFormat::Preserve) t.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return t;
}
Tensor& set_storage(Tensor& t, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_storage_offset(offset);
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return t;
}
Tensor& set_whole(Tensor& t, c10::Storage storage) {
  const int64_t n = storage.nbytes() / t.dtype().itemsize();
  return set_storage(t, std::move(storage), 0, {n}, {1});
}
Tensor& set_tensor(Tensor& t, const Tensor& to) {
  return set_storage(t, to.storage(), to.storage_offset(), to.sizes(), to.strides());
}
// as for a GPU, Module.to() moves parameters in place
bool may_take_place(const Tensor& a, const Tensor& b) { return a.layout() == at::kStrided && b.layout() == at::kStrided; }

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef extra, int64_t groups) {
  const bool with_bias = bias && bias->defined();
  for (const auto& t : {x, w, with_bias ? *bias : x})
    if (!is_here(t)) refuse("convolution", t);
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  const auto b = with_bias ? std::optional<Tensor>(on_host(*bias)) : std::nullopt;
  return from_host(
      at::convolution(on_host(x), on_host(w), b, stride, padding, dilation, transposed, extra, groups), {});
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& g, const Tensor& x, const Tensor& w,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef extra, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  for (const auto& t : {g, x, w})
    if (!is_here(t)) refuse("convolution_backward", t);
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  const std::vector<int64_t> bias_size = {g.size(1)};
  const auto [dx, dw, db] =
      at::convolution_backward(on_host(g), on_host(x), on_host(w), at::OptionalIntArrayRef(bias_size), stride, padding,
                               dilation, transposed, extra, groups, wanted);
  return {from_host(dx, {}), from_host(dw, {}), from_host(db, {})};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &read_number);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_has_compatible_shallow_copy_type", &may_take_place);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  for (const char* name : {"native_group_norm", "native_group_norm_backward"})  // composite, and none for this key
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
  m.def("allow_float64", [](bool allowed) { has_float64 = allowed; });
  m.def("allow_generators", [](bool allowed) { has_generators = allowed; });
  m.def("transfers", [] { return transfers; });
  m.def("clear", [] { transfers.clear(); });
  m.def("seed", [](uint64_t number) { random_numbers.set_current_seed(number); });
  m.def("get_state", [] { return random_numbers.get_state(); });
  m.def("set_state", [](const Tensor& state) { random_numbers.set_state(state); });
}
