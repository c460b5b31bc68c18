#include "observer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "activation_watch.h"
#include "convolution_geometry.h"
#include "data_flow.h"
#include "gradient_capture.h"
#include "operator_watch.h"
#include "per_example/per_example.h"
#include "structure/structure_tracer.h"
#include "tensor_sums.h"

namespace tycho {
namespace {

using per_example::Batch;
using per_example::Contribution;

// Per-example gradients of one parameter are made one beside the other only up to this size.
constexpr int64_t kMaxMaterialisedElements = int64_t{1} << 26;
// Watched steps after which a kernel that was not used is not waited for.
constexpr int kConvolutionAttempts = 4;

// LibTorch's exceptions carry a stack trace, which nobody wants in a notice.
std::string reason(const std::exception& error) {
  const auto* own = dynamic_cast<const c10::Error*>(&error);
  return own == nullptr ? error.what() : own->what_without_backtrace();
}

// A stretch of a parameter's storage that an operator's argument covers, in elements.
struct Extent {
  int64_t begin = 0;
  int64_t end = 0;
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

// Undefined unless the tensor covers a stretch without gaps (any order of dimensions).
std::optional<Extent> extent(const at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) return std::nullopt;
  return Extent{tensor.storage_offset(), tensor.storage_offset() + tensor.numel()};
}

// What one use of a parameter contributed in one backward pass.
struct Part {
  Contribution contribution;
  Extent range;
  at::Tensor in_storage_order;  // [b, numel], where per-example gradients were made
};

// What is known of a parameter's per-example gradients in the current step.
struct ParameterState {
  at::Tensor tensor;
  uint32_t layer = 0;
  int64_t uses = 0;          // in forward passes since its last gradient
  std::string unrecognised;  // why a use since its last gradient is not exact
  std::vector<Part> parts;   // of the current backward pass
  std::vector<at::Tensor> norms;
  std::vector<int64_t> sizes;
  std::string why_not;    // of the step
  bool verified = false;  // its per-example gradients have been seen to add up to the gradient
  std::string disproved;  // they have been seen not to
};

}  // namespace

struct Observer::Impl : OperatorListener {
  // Outlives the observer in hooks of graphs that the user retains.
  struct Step {
    std::mutex mutex;
    bool active = false;
    Impl* owner = nullptr;
  };

  ModelInfo model;
  ObserverOptions options;
  std::unordered_map<const c10::StorageImpl*, uint32_t> by_storage;
  std::unordered_set<const c10::StorageImpl*>
      shared_storage;  // of several parameters: cannot be attributed
  GradientCapture gradients;
  std::unique_ptr<OperatorWatch> watch;
  std::unique_ptr<structure::StructureTracer> tracer;
  std::unique_ptr<OperatorWatch> tracer_watch;
  std::shared_ptr<Step> step;
  Needs needs;
  double loss_scale = 1;
  bool gradients_trusted = false;
  bool paused = false;

  std::vector<ParameterState> parameters;
  ActivationWatch activations;
  std::vector<ConvolutionGeometry> convolutions;  // of all steps so far, the last use of each
  int convolution_attempts = 0;
  std::vector<ObserverNotice> notices;
  int64_t rows_per_example = 1;  // of the model's input, found by comparing with the batch size
  Batch batch;
  bool new_forward = true;
  std::string pass_not_exact;  // why nothing in the current forward pass is exact
  DataFlow flow{[this](const at::Tensor& tensor) { return parameter_of(tensor).has_value(); }};

  // Between before() and after().
  struct PendingUse {
    uint32_t parameter;
    per_example::Use use;
    std::string why_not;  // not empty: its per-example gradients cannot be had exactly
  };
  std::vector<PendingUse> pending;

  Impl(const ModelInfo& model_info, ObserverOptions observer_options)
      : model(model_info),
        options(std::move(observer_options)),
        gradients(model_info,
                  [this](uint32_t id, const at::Tensor& delivered, GradientCapture::Use use) {
                    on_gradient(id, delivered, use);
                  }),
        activations(model_info) {
    parameters.resize(model.parameters.size());
    convolutions.resize(model.parameters.size());
    for (const ParameterInfo& parameter : model.parameters) {
      parameters[parameter.id].tensor = parameter.tensor;
      parameters[parameter.id].layer = parameter.layer;
      if (!parameter.tensor.has_storage()) continue;
      const auto* storage = parameter.tensor.storage().unsafeGetStorageImpl();
      if (!by_storage.emplace(storage, parameter.id).second) shared_storage.insert(storage);
    }
  }

  bool selected(uint32_t layer) const {
    return options.selected_layers.empty() || options.selected_layers[layer];
  }

  std::optional<uint32_t> parameter_of(const at::Tensor& tensor) const {
    if (!tensor.defined() || !tensor.has_storage()) return std::nullopt;
    const auto found = by_storage.find(tensor.storage().unsafeGetStorageImpl());
    if (found == by_storage.end()) return std::nullopt;
    return found->second;
  }

  void writes(const c10::IValue& target) override {
    try {
      const auto write = [this](const at::Tensor& tensor) {
        if (const auto id = parameter_of(tensor)) gradients.written(*id);
      };
      if (target.isTensor()) write(target.toTensor());
      if (target.isTensorList()) {
        for (const at::Tensor& tensor : target.toTensorVector()) write(tensor);
      }
    } catch (const std::exception& error) {
      fault(reason(error));
    }
  }

  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override {
    try {
      return before_operator(name, inputs);
    } catch (const std::exception& error) {
      fault(reason(error));
      return false;
    }
  }

  void after(const std::vector<c10::IValue>& results) override {
    try {
      after_operator(results);
    } catch (const std::exception& error) {
      fault(reason(error));
    }
    pending.clear();
  }

  void fault(const std::string& what) {
    // Whatever was being looked at cannot be trusted any more in this step.
    pass_not_exact = what;
    notices.push_back({v1::Event::FAULT, "observer_fault", what, v1::SCOPE_RUN, 0});
  }

  bool before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
    pending.clear();
    if (paused) return false;
    const bool wants_norms = needs.per_example_gradient_norms;
    batch.rearranged =
        flow.before(name, inputs, options.batch_dim, new_forward) || batch.rearranged;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].isTensorList()) {
        for (const at::Tensor& tensor : inputs[i].toTensorVector()) {
          if (const auto id = parameter_of(tensor); id && tensor.requires_grad()) {
            pending.push_back(
                {*id, {name, {}, i, tensor}, fmt::format("{} takes a list of parameters", name)});
          }
        }
        continue;
      }
      if (!inputs[i].isTensor()) continue;
      const at::Tensor tensor = inputs[i].toTensor();
      const auto id = parameter_of(tensor);
      if (id) {
        // A detached weight gets no gradient from this use.
        if (tensor.requires_grad()) pending.push_back({*id, {name, {}, i, tensor}, ""});
      }
    }
    activations.before(name, inputs, used_parameters());
    if (pending.empty()) return true;
    note_convolution(name, inputs);
    if (wants_norms) {
      for (PendingUse& use : pending) {
        if (!selected(parameters[use.parameter].layer)) continue;
        use.use.arguments.assign(inputs.begin(), inputs.end());
        if (use.why_not.empty()) (void)per_example::recognised(use.use, &use.why_not);
      }
    }
    return true;
  }

  // By the operator that runs.
  std::vector<uint32_t> used_parameters() const {
    std::vector<uint32_t> used;
    for (const PendingUse& use : pending) used.push_back(use.parameter);
    return used;
  }

  void note_convolution(std::string_view name, c10::ArrayRef<const c10::IValue> inputs) {
    if (name.find("conv") == std::string_view::npos) return;
    for (const PendingUse& use : pending) {
      if (use.use.position != 1 ||
          use.use.argument.sizes() != parameters[use.parameter].tensor.sizes()) {
        continue;
      }
      if (auto geometry = convolution_geometry(name, inputs)) {
        convolutions[use.parameter] = std::move(*geometry);
      }
    }
  }

  // Whether the other operand of a use is made of examples, as many as the pass has.
  void check_operand(PendingUse* use) {
    if (!use->why_not.empty()) return;
    const size_t position = per_example::operand(use->use);
    if (position >= use->use.arguments.size() || !use->use.arguments[position].isTensor() ||
        !flow.carries(use->use.arguments[position].toTensor())) {
      use->why_not =
          fmt::format("{} combines it with something that is not made of examples", use->use.name);
      return;
    }
    const at::Tensor operand = use->use.arguments[position].toTensor();
    // Only hidden activations may be flattened; a model input shows how many examples it has.
    if (operand.requires_grad()) return;
    const bool as_expected = (operand.dim() > batch.dim && operand.size(batch.dim) == batch.size) ||
                             (rows_per_example > 1 && operand.dim() >= 1 && operand.dim() <= 2 &&
                              operand.size(0) == batch.size * rows_per_example);
    if (as_expected) return;
    use->why_not = "an input does not have as many examples as the first one";
    if (operand.dim() >= 2) pass_not_exact = use->why_not;
  }

  void after_operator(const std::vector<c10::IValue>& results) {
    flow.after(results);
    if (pending.empty()) return;
    if (results.empty() || !results[0].isTensor()) {
      for (const PendingUse& use : pending) {
        parameters[use.parameter].unrecognised =
            "an operator that uses it does not return a tensor";
        ++parameters[use.parameter].uses;
      }
      return;
    }
    const at::Tensor output = results[0].toTensor();
    if (!output.defined() || !output.requires_grad()) return;
    // A view of a parameter is not a use of it; what is done with the view is.
    if (parameter_of(output)) return;
    find_batch();
    const bool several_outputs = results.size() > 1;
    for (PendingUse& use : pending) {
      ParameterState& parameter = parameters[use.parameter];
      ++parameter.uses;
      if (!needs.per_example_gradient_norms || !selected(parameter.layer)) continue;
      check_operand(&use);
      const auto range = extent(use.use.argument);
      if (use.why_not.empty() && several_outputs)
        use.why_not = fmt::format("{} has several outputs", use.use.name);
      if (use.why_not.empty() &&
          shared_storage.count(parameter.tensor.storage().unsafeGetStorageImpl()) > 0) {
        use.why_not = "it shares its storage with another parameter";
      }
      if (use.why_not.empty() && !range) use.why_not = "it is used through a view with gaps";
      if (!use.why_not.empty()) {
        parameter.unrecognised = use.why_not;
        continue;
      }
      watch_use(use, output, *range);
    }
    activations.after(output, used_parameters());
  }

  // The number of examples, from the first operator that uses a parameter in a forward pass.
  void find_batch() {
    if (!new_forward) return;
    batch.dim = options.batch_dim;
    batch.size = 0;
    for (const PendingUse& use : pending) {
      for (const c10::IValue& argument : use.use.arguments) {
        if (!argument.isTensor()) continue;
        const at::Tensor tensor = argument.toTensor();
        if (!flow.carries(tensor)) continue;
        if (tensor.dim() > std::max<int64_t>(batch.dim, 1) ||
            (tensor.dim() == 1 && batch.dim == 0)) {
          new_forward = false;
          pass_not_exact.clear();
          batch.size = tensor.size(batch.dim);
          // Only an input of at most two dimensions can be flattened without its showing.
          if (tensor.dim() <= 2 && rows_per_example > 1 && batch.size % rows_per_example == 0) {
            batch.size /= rows_per_example;
          }
          return;
        }
      }
    }
  }

  void watch_use(const PendingUse& pending_use, const at::Tensor& output, Extent range) {
    struct Kept {
      per_example::Use use;
      std::vector<std::pair<at::Tensor, uint32_t>> versions;
    };
    auto kept = std::make_shared<Kept>();
    kept->use = pending_use.use;
    for (c10::IValue& argument : kept->use.arguments) {
      if (!argument.isTensor() || !argument.toTensor().defined()) continue;
      // Detached, so that no part of the graph is kept alive; versions are shared with the
      // original.
      const at::Tensor tensor = argument.toTensor().detach();
      kept->versions.emplace_back(tensor, tensor._version());
      argument = tensor;
    }
    kept->use.argument = kept->use.argument.detach();
    const uint32_t id = pending_use.parameter;
    const bool running_statistics =
        kept->use.name == "aten::batch_norm" || kept->use.name == "aten::instance_norm";
    output.register_hook(
        [step = step, kept, id, range, batch = batch, running_statistics](const at::Tensor& d) {
          std::lock_guard lock(step->mutex);
          if (!step->active || !d.defined()) return;
          at::NoGradGuard no_grad;
          bool changed = false;
          for (size_t i = 0; i < kept->versions.size(); ++i) {
            // BatchNorm itself updates its running statistics, which it does not use while it
            // trains.
            if (running_statistics && kept->use.arguments[5].toBool() &&
                kept->versions[i].first.dim() == 1)
              continue;
            changed = changed || kept->versions[i].first._version() != kept->versions[i].second;
          }
          step->owner->on_output_gradient(id, kept->use, d, range, batch, changed);
        });
  }

  // In backward: the gradient of the output of a use has arrived.
  void on_output_gradient(uint32_t id, const per_example::Use& use, const at::Tensor& d,
                          Extent range, const Batch& use_batch, bool changed) {
    ParameterState& parameter = parameters[id];
    if (paused) return;
    if (changed) {
      parameter.unrecognised =
          "an input of an operator that uses it was changed in place afterwards";
      return;
    }
    if (!parameter.disproved.empty()) return;
    try {
      const bool all = range.end - range.begin == parameter.tensor.numel();
      const bool materialise = (parameter.uses > 1 && all) || !parameter.verified;
      const bool fits = use_batch.size * use.argument.numel() <= kMaxMaterialisedElements;
      if (materialise && !fits && parameter.uses > 1 && all) {
        parameter.unrecognised = fmt::format(
            "it is used {} times, and the gradients of {} examples would need {} MiB",
            parameter.uses, use_batch.size, use_batch.size * use.argument.numel() * 8 >> 20);
        return;
      }
      Part part;
      part.range = range;
      part.contribution = per_example::contribution(use, d, use_batch, materialise && fits);
      if (!part.contribution.why_not.empty()) {
        parameter.unrecognised = part.contribution.why_not;
        return;
      }
      if (part.contribution.per_example.defined()) {
        part.in_storage_order = storage_order(part.contribution.per_example, use.argument);
        part.contribution.per_example = at::Tensor();
      }
      parameter.parts.push_back(std::move(part));
    } catch (const std::exception& error) {
      parameter.unrecognised = reason(error);
    }
  }

  // [b, shape of the argument] with the elements of each example in the order in which the storage
  // holds them.
  static at::Tensor storage_order(const at::Tensor& gradients, const at::Tensor& argument) {
    std::vector<int64_t> order(static_cast<size_t>(argument.dim()));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return argument.stride(a) > argument.stride(b); });
    std::vector<int64_t> permutation{0};
    for (int64_t dim : order) permutation.push_back(dim + 1);
    return gradients.permute(permutation).reshape({gradients.size(0), -1});
  }

  // In backward: all uses of the parameter in this pass have contributed.
  void on_gradient(uint32_t id, const at::Tensor& delivered, GradientCapture::Use use) {
    std::lock_guard lock(step->mutex);
    if (!step->active) return;
    if (!new_forward) {
      new_forward = true;
      batch.rearranged = false;
    }
    ParameterState& parameter = parameters[id];
    if (!needs.per_example_gradient_norms || !selected(parameter.layer)) return;
    auto parts = std::move(parameter.parts);
    std::string unrecognised = std::move(parameter.unrecognised);
    parameter.parts.clear();
    parameter.unrecognised.clear();
    const int64_t uses = parameter.uses;
    parameter.uses = 0;
    if (use == GradientCapture::Use::kIgnored) return;
    if (use == GradientCapture::Use::kFirst) {
      parameter.norms.clear();
      parameter.sizes.clear();
      parameter.why_not.clear();
    }
    if (use == GradientCapture::Use::kUnknown) unrecognised = "its gradient could not be captured";
    if (!pass_not_exact.empty()) unrecognised = pass_not_exact;
    if (!parameter.disproved.empty()) unrecognised = parameter.disproved;
    if (unrecognised.empty() && parts.empty()) {
      unrecognised =
          uses == 0 ? "no operator was seen to use it" : "no use of it received a gradient";
    }
    at::Tensor norm;
    if (unrecognised.empty()) {
      try {
        norm = combine(&parameter, parts, delivered, &unrecognised);
      } catch (const std::exception& error) {
        unrecognised = reason(error);
      }
    }
    if (!unrecognised.empty()) {
      parameter.why_not = unrecognised;
      return;
    }
    parameter.sizes.push_back(norm.size(0));
    parameter.norms.push_back(std::move(norm));
  }

  // Squared norms of the sum over uses; and, once, a check that the examples' gradients add up to
  // the gradient.
  at::Tensor combine(ParameterState* parameter, const std::vector<Part>& parts,
                     const at::Tensor& delivered, std::string* why_not) {
    const int64_t size = parts[0].contribution.norm_sq.size(0);
    bool materialised = true;
    bool disjoint = true;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].contribution.norm_sq.size(0) != size) {
        *why_not = "its uses saw batches of different sizes";
        return {};
      }
      materialised = materialised && parts[i].in_storage_order.defined();
      for (size_t j = 0; j < i; ++j)
        disjoint = disjoint && !parts[i].range.overlaps(parts[j].range);
    }
    if (!materialised && !disjoint) {
      *why_not = "its uses overlap, and their per-example gradients were not kept";
      return {};
    }
    at::Tensor gradients;
    if (materialised && (!disjoint || !parameter->verified)) {
      const int64_t begin = parameter->tensor.storage_offset();
      gradients = at::zeros({size, parameter->tensor.numel()}, parts[0].in_storage_order.options());
      for (const Part& part : parts) {
        gradients.narrow(1, part.range.begin - begin, part.range.end - part.range.begin)
            .add_(part.in_storage_order);
      }
      // On other devices the comparison would wait for the device.
      if (!parameter->verified && delivered.device().is_cpu()) {
        const at::Tensor expected =
            storage_order(per_example::widen(delivered).unsqueeze(0), parameter->tensor)
                .squeeze(0)
                .to(at::kDouble);
        const double error =
            (gradients.sum(0, false, at::kDouble) - expected).norm().item<double>();
        const double scale =
            gradients.to(at::kDouble).norm().item<double>() + expected.norm().item<double>();
        const auto type = delivered.scalar_type();
        const double tolerance = type == at::kDouble ? 1e-9 : type == at::kFloat ? 1e-3 : 5e-2;
        if (std::isfinite(scale) && !(error <= tolerance * scale)) {
          parameter->disproved = fmt::format(
              "the gradients of its examples do not add up to its gradient (relative difference "
              "{:.1e})",
              error / scale);
          *why_not = parameter->disproved;
          return {};
        }
        parameter->verified = std::isfinite(scale);
      }
    } else {
      parameter->verified =
          true;  // Too large to be checked, or on a device where checking would wait.
    }
    if (!delivered.device().is_cpu()) parameter->verified = true;
    if (!disjoint) return per_example::row_norm_sq(gradients);
    at::Tensor norm = parts[0].contribution.norm_sq;
    for (size_t i = 1; i < parts.size(); ++i) norm = norm + parts[i].contribution.norm_sq;
    return norm;
  }
};

Observer::Observer(const ModelInfo& model, ObserverOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}

Observer::~Observer() {
  if (impl_->step) {
    std::lock_guard lock(impl_->step->mutex);
    impl_->step->active = false;
  }
}

void Observer::install(const Needs& needs, double loss_scale, int64_t /*expected_batch_size*/) {
  Impl& impl = *impl_;
  impl.needs = needs;
  impl.loss_scale = loss_scale;
  impl.step = std::make_shared<Impl::Step>();
  impl.step->active = true;
  impl.step->owner = &impl;
  impl.new_forward = true;
  for (ParameterState& parameter : impl.parameters) {
    parameter.uses = 0;
    parameter.unrecognised.clear();
    parameter.parts.clear();
    parameter.norms.clear();
    parameter.sizes.clear();
    parameter.why_not.clear();
  }
  impl.activations.begin(needs);
  impl.notices.clear();
  const bool captures = needs.gradients || needs.parameter_sums || needs.gradient_norms ||
                        needs.microbatch_gradient_norms || needs.per_example_gradient_norms;
  const bool watches = needs.per_example_gradient_norms || needs.activations ||
                       needs.output_gradients || needs.convolutions ||
                       (captures && impl.gradients.needs_writes());
  impl.convolution_attempts += watches;
  if (captures) {
    using Keep = GradientCapture::Keep;
    const bool trusted = impl.gradients_trusted && loss_scale == 1.0;
    const bool copies = needs.gradients || (needs.parameter_sums && !trusted);
    impl.gradients.install(copies                 ? Keep::kCopy
                           : needs.parameter_sums ? Keep::kFingerprint
                                                  : Keep::kNorm,
                           needs.microbatch_gradient_norms, watches);
  }
  impl.batch.rearranged = false;
  if (watches) {
    impl.watch = std::make_unique<OperatorWatch>(&impl);
  }
  if (needs.symmetries) {
    impl.tracer = std::make_unique<structure::StructureTracer>(impl.model);
    impl.tracer_watch = std::make_unique<OperatorWatch>(impl.tracer.get());
  }
}

void Observer::trust_gradients(bool trusted) { impl_->gradients_trusted = trusted; }

void Observer::set_loss_scale(double loss_scale) { impl_->loss_scale = loss_scale; }

const std::vector<ConvolutionGeometry>& Observer::convolutions() const {
  return impl_->convolutions;
}

bool Observer::lacks_convolutions() const {
  if (impl_->convolution_attempts >= kConvolutionAttempts) return false;
  return std::any_of(impl_->model.parameters.begin(), impl_->model.parameters.end(),
                     [this](const ParameterInfo& parameter) {
                       return parameter.tensor.dim() >= 3 && parameter.tensor.dim() <= 5 &&
                              impl_->convolutions[parameter.id].input.empty();
                     });
}

void Observer::pause() {
  impl_->paused = true;
  impl_->activations.set_paused(true);
  if (impl_->tracer) impl_->tracer->set_paused(true);
  impl_->gradients.set_paused(true);
}

void Observer::resume() {
  impl_->paused = false;
  impl_->activations.set_paused(false);
  if (impl_->tracer) impl_->tracer->set_paused(false);
  impl_->gradients.set_paused(false);
}

StepObservation Observer::uninstall(int64_t batch_size) {
  Impl& impl = *impl_;
  impl.watch.reset();
  impl.tracer_watch.reset();
  impl.gradients.uninstall();
  if (impl.step) {
    std::lock_guard lock(impl.step->mutex);
    impl.step->active = false;
  }
  StepObservation result;
  result.parameters.resize(impl.parameters.size());
  result.fingerprints.resize(impl.parameters.size());
  auto captured = impl.gradients.take();
  const double scale = impl.loss_scale;
  const bool scaled = scale != 1.0;
  bool cleared = false;
  bool mismatch = false;
  for (size_t id = 0; id < captured.size(); ++id) {
    ParameterObservation& observed = result.parameters[id];
    GradientCapture::Captured& from = captured[id];
    cleared = cleared || from.cleared;
    observed.gradient = from.gradient;
    observed.gradient_norm_sq = from.norm_sq;
    if (!scaled) result.fingerprints[id] = from.fingerprint;
    if (impl.needs.gradient_norms && !observed.gradient_norm_sq.defined() &&
        from.gradient.defined())
      observed.gradient_norm_sq = squared_norm(from.gradient);
    observed.microbatch_gradient_norm_sq = std::move(from.microbatch_norm_sq);
    if (scaled) {
      if (observed.gradient.defined())
        observed.gradient = per_example::widen(observed.gradient) / scale;
      if (observed.gradient_norm_sq.defined())
        observed.gradient_norm_sq = observed.gradient_norm_sq / (scale * scale);
      for (at::Tensor& norm : observed.microbatch_gradient_norm_sq) norm = norm / (scale * scale);
    }
    if (from.unknown) {
      result.notices.push_back(
          {v1::Event::NOT_OBSERVED, "gradient_not_observed",
           fmt::format("the gradient of {} is sparse, made with create_graph, or changed by a hook",
                       impl.model.parameters[id].name),
           v1::SCOPE_PARAMETER, static_cast<uint32_t>(id)});
    }
    ParameterState& parameter = impl.parameters[id];
    if (!impl.needs.per_example_gradient_norms || !impl.selected(parameter.layer) ||
        from.backwards == 0)
      continue;
    observed.why_not_per_example = parameter.why_not;
    if (!parameter.why_not.empty() ||
        static_cast<int64_t>(parameter.norms.size()) != from.backwards) {
      if (observed.why_not_per_example.empty())
        observed.why_not_per_example = "a backward pass was not observed";
    } else {
      int64_t examples = 0;
      for (int64_t size : parameter.sizes) examples += size;
      if (batch_size > 0 && examples != batch_size) {
        observed.why_not_per_example = fmt::format(
            "{} examples were seen, but the step is said to have {}", examples, batch_size);
        if (examples > batch_size && examples % batch_size == 0 && !mismatch) {
          impl.rows_per_example *= examples / batch_size;
        } else if (impl.rows_per_example > 1 && !mismatch) {
          impl.rows_per_example = 1;
        }
        mismatch = true;
      } else {
        observed.microbatch_sizes = parameter.sizes;
        observed.per_example_norm_sq = std::move(parameter.norms);
        if (scaled) {
          for (at::Tensor& norm : observed.per_example_norm_sq) norm = norm / (scale * scale);
        }
      }
    }
    if (!observed.why_not_per_example.empty()) {
      result.notices.push_back(
          {v1::Event::NOT_OBSERVED, "per_example_gradients_not_observed",
           fmt::format("{}: {}", impl.model.parameters[id].name, observed.why_not_per_example),
           v1::SCOPE_PARAMETER, static_cast<uint32_t>(id)});
    }
  }
  if (cleared) {
    result.notices.push_back(
        {v1::Event::NOTICE, "gradients_cleared_before_step",
         "gradients were cleared before Session::step; what backward delivered was kept",
         v1::SCOPE_RUN, 0});
  }
  if (impl.tracer) {
    structure::Structure found = impl.tracer->finish(scale);
    result.structure = std::move(found.description);
    result.symmetries = std::move(found.groups);
    impl.tracer.reset();
  }
  result.layers = impl.activations.end(scale);
  for (ObserverNotice& notice : impl.notices) result.notices.push_back(std::move(notice));
  impl.notices.clear();
  impl.flow.clear();
  for (ParameterState& parameter : impl.parameters) {
    parameter.parts.clear();
    parameter.norms.clear();
  }
  return result;
}

}  // namespace tycho
