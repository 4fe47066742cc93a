// The vector arithmetic of one instruction set against the C library, and the 16-bit types against arithmetic that is
// exact. Prints one line a finding and exits 1 if any is past its bound. No torch.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../../csrc/cpu/vector.inl.h"

namespace fused_rnn {
namespace {

int failures = 0;

void report(const char* what, double worst, double bound, double at) {
  const bool good = worst <= bound;
  failures += !good;
  std::printf("%s %s: worst %.3g at %.9g, bound %.3g\n", good ? "ok" : "FAILED", what, worst, at, bound);
}

// The largest error of f in ulps of the exact value, over x from low to high.
template <class A, class F, class Exact>
void check_function(const char* what, A low, A high, double bound, F f, Exact exact) {
  constexpr int kPoints = 400000, kLanes = Vec<A>::kLanes;
  double worst = 0, worst_at = 0;
  for (int i = 0; i < kPoints; i += kLanes) {
    Vec<A> x(A(0));
    for (int lane = 0; lane < kLanes; ++lane) x.v[lane] = low + (high - low) * A(i + lane) / A(kPoints);
    const Vec<A> y = f(x);
    for (int lane = 0; lane < kLanes; ++lane) {
      const long double want = exact(static_cast<long double>(x.v[lane]));
      const A rounded = A(want);
      const long double ulp = std::nextafter(std::fabs(rounded), A(INFINITY)) - std::fabs(rounded);
      const double error = double(std::fabs(static_cast<long double>(y.v[lane]) - want) / ulp);
      if (!(error <= worst)) worst = error, worst_at = x.v[lane];
    }
  }
  report(what, worst, bound, worst_at);
}

template <class A>
void check_special(const char* what) {
  const A inf = A(INFINITY), nan = A(NAN);
  const auto first = [](Vec<A> v) { return v.v[0]; };
  const bool good = std::isnan(first(exp(Vec<A>(nan)))) && std::isnan(first(tanh(Vec<A>(nan)))) &&
                    std::isnan(first(sigmoid(Vec<A>(nan)))) && first(tanh(Vec<A>(inf))) == A(1) &&
                    first(tanh(Vec<A>(-inf))) == A(-1) && first(sigmoid(Vec<A>(inf))) == A(1) &&
                    first(sigmoid(Vec<A>(-inf))) < A(1e-35) && first(tanh(Vec<A>(A(0)))) == A(0);
  report(what, good ? 0 : 1, 0, 0);
}

template <class A>
void check_functions(const char* type) {
  const auto exp_ = [](Vec<A> x) { return exp(x); };
  const auto tanh_ = [](Vec<A> x) { return tanh(x); };
  const auto sigmoid_ = [](Vec<A> x) { return sigmoid(x); };
  std::printf("%s, %d lanes\n", type, Vec<A>::kLanes);
  const double per_x = kOnePart<A> ? 1.0 / 20 : 0;  // ulps more
  check_function<A>("exp", -80, 80, 1.5 + 80 * per_x, exp_, [](long double x) { return std::exp(x); });
  check_function<A>("exp", -8, 8, 1.5 + 8 * per_x, exp_, [](long double x) { return std::exp(x); });
  check_function<A>("tanh", -12, 12, 2.5, tanh_, [](long double x) { return std::tanh(x); });
  check_function<A>("tanh near 0", A(-1e-3), A(1e-3), 2.5, tanh_, [](long double x) { return std::tanh(x); });
  check_function<A>("sigmoid", -30, 30, 2.5 + 30 * per_x, sigmoid_,
                    [](long double x) { return 1 / (1 + std::exp(-x)); });
  check_special<A>("NaN, infinity, zero");
}

// Every 16-bit pattern survives the trip to float and back; every float between two neighbours goes to the nearer, and
// one halfway to the even one.
template <class S>
void check_storage(const char* type) {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    S s;
    s.bits = uint16_t(bits);
    const float value = float(s);
    const uint16_t back = S(value).bits;
    wrong += std::isnan(value) ? !std::isnan(float(S(value))) : back != s.bits;
    S next;
    next.bits = uint16_t(bits + 1);
    const float after = float(next);
    if (!std::isfinite(value) || !std::isfinite(after) || (bits & 0x7fff) == 0x7fff) continue;
    const float middle = float((double(value) + double(after)) / 2);
    const uint16_t even = bits % 2 == 0 ? s.bits : next.bits;
    wrong += S(middle).bits != even;
    wrong += S(std::nextafter(middle, value)).bits != s.bits;
    wrong += S(std::nextafter(middle, after)).bits != next.bits;
  }
  report(type, wrong, 0, 0);
}

// load and store of every number of lanes, with nothing touched beyond
template <class A, class S>
void check_memory(const char* what) {
  constexpr int kLanes = Vec<A>::kLanes;
  int wrong = 0;
  for (int n = 0; n <= kLanes; ++n) {
    S from[kLanes + 1], to[kLanes + 1];
    for (int i = 0; i <= kLanes; ++i) from[i] = S(A(i + 1)), to[i] = S(A(-1));
    const Vec<A> v = load<A>(from, n);
    store(to, v + Vec<A>(A(1)), n);
    for (int i = 0; i < kLanes; ++i) wrong += v.v[i] != (i < n ? A(i + 1) : A(0));
    for (int i = 0; i <= kLanes; ++i) wrong += A(to[i]) != (i < n ? A(i + 2) : A(-1));
  }
  report(what, wrong, 0, 0);
}

}  // namespace
}  // namespace fused_rnn

int main() {
  using namespace fused_rnn;
  check_functions<float>("float");
  check_functions<double>("double");
  check_storage<BFloat16>("bfloat16");
  check_storage<Float16>("float16");
  check_memory<float, float>("memory of float");
  check_memory<double, double>("memory of double");
  check_memory<float, BFloat16>("memory of bfloat16");
  return failures != 0;
}
