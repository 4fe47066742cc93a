// The kernels that know no cell.
#include "../kernels.cuh"

namespace fused_rnn {

const void* sample_kernel() { return reinterpret_cast<const void*>(&convert_elements<float>); }

template <class S>
int copy_active(const ActiveCopy<S>& args, Stream stream) {
  return launch_elements(copy_active_elements<S>, args, int64_t(args.steps.count) * args.steps.B * args.width, stream);
}

template <class From, class To>
int copy_kept(const KeptCopy<From, To>& args, Stream stream) {
  return launch_elements(copy_kept_elements<From, To>, args, args.steps.B * args.steps.H, stream);
}

template <class S>
int projected_h(const ProjectedStep<S>& args, Stream stream) {
  return launch_elements(projected_h_elements<S>, args, args.steps.B * args.steps.H, stream);
}

template <class S>
int projected_grad_h(const ProjectedGradStep<S>& args, Stream stream) {
  return launch_elements(projected_grad_h_elements<S>, args, args.steps.B * args.steps.H, stream);
}

template <class S>
int convert(const Conversion<S>& args, Stream stream) {
  return launch_elements(convert_elements<S>, args, args.n, stream);
}

template int copy_active(const ActiveCopy<float>&, Stream);
template int copy_active(const ActiveCopy<BFloat16>&, Stream);
template int copy_active(const ActiveCopy<Float16>&, Stream);
template int copy_kept(const KeptCopy<float, float>&, Stream);
template int copy_kept(const KeptCopy<float, BFloat16>&, Stream);
template int copy_kept(const KeptCopy<float, Float16>&, Stream);
template int copy_kept(const KeptCopy<BFloat16, BFloat16>&, Stream);
template int copy_kept(const KeptCopy<Float16, Float16>&, Stream);
template int projected_h(const ProjectedStep<float>&, Stream);
template int projected_h(const ProjectedStep<BFloat16>&, Stream);
template int projected_h(const ProjectedStep<Float16>&, Stream);
template int projected_grad_h(const ProjectedGradStep<float>&, Stream);
template int projected_grad_h(const ProjectedGradStep<BFloat16>&, Stream);
template int projected_grad_h(const ProjectedGradStep<Float16>&, Stream);
template int convert(const Conversion<float>&, Stream);
template int convert(const Conversion<BFloat16>&, Stream);
template int convert(const Conversion<Float16>&, Stream);

}  // namespace fused_rnn
