#include "observer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "activation_watch.h"
#include "convolution_geometry.h"
#include "error_text.h"
#include "example_gradients.h"
#include "gradient_capture.h"
#include "operator_watch.h"
#include "parameter_map.h"
#include "stray_weights.h"
#include "structure/structure_tracer.h"
#include "tape/structure_key.h"
#include "tensor_sums.h"

namespace tycho {
namespace {

// Watched steps after which a kernel that was not used is not waited for.
constexpr int kConvolutionAttempts = 4;
constexpr const char* kExamplesNotObserved = "per_example_gradients_not_observed";

}  // namespace

struct Observer::Impl : OperatorListener {
  ModelInfo model;
  ObserverOptions options;
  ParameterMap map;
  GradientCapture gradients;
  std::unique_ptr<OperatorWatch> watch;
  std::unique_ptr<structure::StructureTracer> tracer;
  std::unique_ptr<OperatorWatch> tracer_watch;
  Needs needs;
  double loss_scale = 1;
  bool gradients_trusted = false;
  bool watch_ran = false;       // in this step
  bool saw_parameters = false;  // an operator of this step used one
  bool paused = false;

  ActivationWatch activations;
  std::vector<ConvolutionGeometry> convolutions;  // of all steps so far, the last use of each
  int convolution_attempts = 0;
  std::vector<ObserverNotice> notices;
  ExampleGradients examples;
  /// By the last experiment; holds as long as the operators do the same with the examples.
  struct EstablishedRows {
    std::optional<uint64_t> key;
    std::vector<tape::RowsWanted> wanted;
    int64_t examples = 0;
    std::unique_ptr<tape::RowExamples> found;
  };
  EstablishedRows established;
  StrayWeights strays;
  std::vector<AppliedParameter> pending;  // between before() and after()

  Impl(const ModelInfo& model_info, ObserverOptions observer_options)
      : model(model_info),
        options(std::move(observer_options)),
        map(model_info),
        gradients(
            model_info,
            [this](uint32_t id, const at::Tensor& delivered, GradientCapture::Use use) {
              activations.delivered(id, use);
              examples.on_gradient(id, delivered, use);
            },
            options.gradient_hooks),
        activations(model_info, options.operator_hooks),
        examples(
            model_info, options.batch_dim, options.selected_layers,
            [this](const at::Tensor& tensor) { return map.find(tensor); },
            [this](uint32_t id) { return map.overlaps_another(id); }, options.operator_hooks) {
    gradients.set_evaluates(options.optimizer_evaluates);
    convolutions.resize(model.parameters.size());
  }

  bool selected(uint32_t layer) const {
    return options.selected_layers.empty() || options.selected_layers[layer];
  }

  void writes(const c10::IValue& target) override {
    try {
      const auto write = [this](const at::Tensor& tensor) {
        for (const uint32_t id : map.all(tensor)) gradients.written(id);
      };
      if (target.isTensor()) write(target.toTensor());
      if (target.isTensorList()) {
        for (const at::Tensor& tensor : target.toTensorVector()) write(tensor);
      }
    } catch (const std::exception& error) {
      fault(error_text(error));
    }
  }

  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override {
    try {
      return before_operator(name, inputs);
    } catch (const std::exception& error) {
      fault(error_text(error));
      return false;
    }
  }

  void after(const std::vector<c10::IValue>& results) override {
    try {
      after_operator(results);
    } catch (const std::exception& error) {
      fault(error_text(error));
    }
    pending.clear();
  }

  void fault(const std::string& what) {
    // Whatever was being looked at cannot be trusted any more in this step.
    examples.give_up(what);
    notices.push_back({v1::Event::FAULT, "observer_fault", what, v1::SCOPE_RUN, 0});
  }

  bool before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
    pending.clear();
    if (paused) return false;
    std::vector<ParameterUse> uses;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].isTensorList()) {
        for (const at::Tensor& tensor : inputs[i].toTensorVector()) {
          const auto id = map.find(tensor);
          note_use(id, i, tensor, &uses);
          if (id && tensor.requires_grad()) {
            pending.push_back({*id, i, tensor, /*in_list=*/true});
          }
          if (!id) note_stray(name, i, tensor);
        }
        continue;
      }
      if (!inputs[i].isTensor()) continue;
      const at::Tensor tensor = inputs[i].toTensor();
      const auto id = map.find(tensor);
      note_use(id, i, tensor, &uses);
      if (!id) note_stray(name, i, tensor);
      if (!id && tensor.defined() && tensor.requires_grad()) {
        // A view of several parameters is like a list of them.
        for (const uint32_t one : map.all(tensor)) {
          pending.push_back({one, i, tensor, /*in_list=*/true});
        }
      }
      if (id) {
        // A detached weight gets no gradient from this use.
        if (tensor.requires_grad()) pending.push_back({*id, i, tensor});
      }
    }
    activations.before(name, inputs, uses);
    examples.before(name, inputs, pending);
    saw_parameters = saw_parameters || !pending.empty();
    if (!pending.empty()) note_convolution(name, inputs);
    return true;
  }

  void note_stray(const char* name, size_t position, const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.requires_grad()) return;
    const at::Tensor leaf(tensor.is_view() ? at::Tensor(tensor._base())
                                           : tensor);  // weight.t() is a view
    if (leaf.is_leaf() && !map.touches(leaf)) strays.used(name, position, leaf);
  }

  // For activations: uses of what does not train too, but not detached ones of what does.
  void note_use(std::optional<uint32_t> id, size_t position, const at::Tensor& tensor,
                std::vector<ParameterUse>* uses) const {
    if (!id) return;
    if (!tensor.requires_grad() && model.parameters[*id].tensor.requires_grad()) return;
    uses->push_back({*id, position, tensor});
  }

  void note_convolution(std::string_view name, c10::ArrayRef<const c10::IValue> inputs) {
    if (name.find("conv") == std::string_view::npos) return;
    for (const AppliedParameter& use : pending) {
      if (use.position != 1 ||
          use.argument.sizes() != model.parameters[use.parameter].tensor.sizes()) {
        continue;
      }
      if (auto geometry = convolution_geometry(name, inputs)) {
        convolutions[use.parameter] = std::move(*geometry);
      }
    }
  }

  void after_operator(const std::vector<c10::IValue>& results) {
    examples.after(results);
    // A view of a parameter is not what a layer puts out.
    const bool tensor = !results.empty() && results[0].isTensor();
    if (!tensor || !map.touches(results[0].toTensor())) {
      activations.after(tensor ? results[0].toTensor() : at::Tensor());
    }
  }
};

Observer::Observer(const ModelInfo& model, ObserverOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}

Observer::~Observer() = default;

void Observer::install(const Needs& needs, double loss_scale, int64_t expected_batch_size,
                       const tape::TapeRecorder* recorder) {
  Impl& impl = *impl_;
  impl.needs = needs;
  impl.loss_scale = loss_scale;
  impl.examples.start_step(needs.per_example_gradient_norms, expected_batch_size, recorder);
  impl.activations.begin(needs);
  impl.notices.clear();
  impl.saw_parameters = false;
  const bool captures = needs.gradients || needs.parameter_sums || needs.gradient_norms ||
                        needs.microbatch_gradient_norms || needs.per_example_gradient_norms ||
                        needs.activations || needs.output_gradients;
  const bool norms =
      needs.gradient_norms || needs.microbatch_gradient_norms || needs.per_example_gradient_norms;
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
                           : norms                ? Keep::kNorm
                                                  : Keep::kNothing,
                           needs.microbatch_gradient_norms, watches);
  }
  impl.watch_ran = watches;
  if (watches) {
    impl.watch = std::make_unique<OperatorWatch>(&impl, impl.options.operator_hooks);
  }
  if (needs.symmetries) {
    impl.tracer =
        std::make_unique<structure::StructureTracer>(impl.model, impl.options.operator_hooks);
    impl.tracer_watch =
        std::make_unique<OperatorWatch>(impl.tracer.get(), impl.options.operator_hooks);
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
  impl_->examples.set_paused(true);
  if (impl_->tracer) impl_->tracer->set_paused(true);
  impl_->gradients.set_paused(true);
}

void Observer::resume() {
  impl_->paused = false;
  impl_->activations.set_paused(false);
  impl_->examples.set_paused(false);
  if (impl_->tracer) impl_->tracer->set_paused(false);
  impl_->gradients.set_paused(false);
}

void Observer::note_loss(const at::Tensor& loss) { impl_->examples.check_loss(loss); }

StepObservation Observer::uninstall(int64_t batch_size) {
  Impl& impl = *impl_;
  impl.watch.reset();
  impl.tracer_watch.reset();
  impl.gradients.uninstall();
  StepObservation result;
  result.parameters.resize(impl.model.parameters.size());
  result.fingerprints.resize(impl.model.parameters.size());
  auto captured = impl.gradients.take();
  const double scale = impl.loss_scale;
  const bool scaled = scale != 1.0;
  bool cleared = false;
  bool delivered = false;
  bool by_hand = false;
  // Operators are seen on one thread only.
  const bool elsewhere =
      impl.watch_ran && !impl.saw_parameters && impl.gradients.on_another_thread();
  if (elsewhere) {
    result.notices.push_back(
        {v1::Event::NOT_OBSERVED, "another_thread",
         "the step ran on a thread other than the one that made the session or last called "
         "Session::step: its layers and single examples were not observed; call Session::step "
         "on the thread that trains",
         v1::SCOPE_RUN, 0});
  }
  for (size_t id = 0; id < captured.size(); ++id) {
    ParameterObservation& observed = result.parameters[id];
    GradientCapture::Captured& from = captured[id];
    cleared = cleared || from.cleared;
    observed.gradient = from.gradient;
    observed.gradient_norm_sq = from.norm_sq;
    if (!scaled) result.fingerprints[id] = from.fingerprint;
    delivered = delivered || from.backwards > 0;
    by_hand = by_hand || from.by_hand;
    // Probes other than sums over parameters expect it dense.
    if (impl.needs.gradients && observed.gradient.defined() && observed.gradient.is_sparse()) {
      observed.gradient = observed.gradient.to_dense();
    }
    if (impl.needs.gradient_norms && !observed.gradient_norm_sq.defined() &&
        from.gradient.defined())
      observed.gradient_norm_sq = squared_norm(from.gradient);
    observed.microbatch_gradient_norm_sq = std::move(from.microbatch_norm_sq);
    if (scaled && !from.by_hand) {
      if (observed.gradient.defined())
        observed.gradient = per_example::widen(observed.gradient) / scale;
      if (observed.gradient_norm_sq.defined())
        observed.gradient_norm_sq = observed.gradient_norm_sq / (scale * scale);
      for (at::Tensor& norm : observed.microbatch_gradient_norm_sq) norm = norm / (scale * scale);
    }
    if (!from.why_not.empty()) {
      result.notices.push_back({v1::Event::NOT_OBSERVED, "gradient_not_observed",
                                fmt::format("the gradient of {} is not observed: {}",
                                            impl.model.parameters[id].name, from.why_not),
                                v1::SCOPE_PARAMETER, static_cast<uint32_t>(id)});
    }
    if (from.by_hand) {
      observed.why_not_per_example = "backward did not deliver its gradient: the program set .grad";
    } else if (!from.why_not.empty()) {
      observed.why_not_per_example = from.why_not;
    } else if (impl.needs.per_example_gradient_norms) {
      observed.why_not_per_example = from.why_no_examples;
    }
    observed.microbatch_sizes =
        impl.examples.microbatch_sizes(static_cast<uint32_t>(id), batch_size);
    if (observed.why_not_per_example.empty()) {
      impl.examples.finish(static_cast<uint32_t>(id), from.backwards, batch_size, &observed);
      if (elsewhere && !observed.why_not_per_example.empty()) {
        observed.why_not_per_example = "the step ran on a thread other than the observed one";
      }
    }
    if (scaled) {
      for (at::Tensor& norm : observed.per_example_norm_sq) norm = norm / (scale * scale);
    }
    if (!observed.why_not_per_example.empty() && from.backwards > 0 &&
        impl.needs.per_example_gradient_norms) {
      result.notices.push_back(
          {v1::Event::NOT_OBSERVED, kExamplesNotObserved,
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
  if (by_hand && !delivered) {
    result.notices.push_back({v1::Event::NOTICE, "gradients_by_hand",
                              "backward delivered no gradient in this step: the gradients that the "
                              "program put into .grad are recorded",
                              v1::SCOPE_RUN, 0});
  }
  if (impl.tracer) {
    structure::Structure found = impl.tracer->finish(scale);
    result.structure = std::move(found.description);
    result.symmetries = std::move(found.groups);
    impl.tracer.reset();
  }
  ActivationWatch::Result activations = impl.activations.end(scale);
  result.layers = std::move(activations.layers);
  for (const ActivationNotObserved& lost : activations.not_observed) {
    const std::string& path = impl.model.layers[lost.layer].path;
    result.notices.push_back(
        {v1::Event::NOT_OBSERVED, lost.what + "_not_observed",
         fmt::format("{} of {} not observed: {}", lost.what,
                     path.empty() ? "the model's own parameters" : "layer " + path, lost.why),
         v1::SCOPE_LAYER, lost.layer});
  }
  if (auto said = impl.strays.end_step()) {
    result.notices.push_back(
        {v1::Event::NOTICE, "weights_not_registered", std::move(*said), v1::SCOPE_RUN, 0});
  }
  for (ObserverNotice& notice : impl.notices) result.notices.push_back(std::move(notice));
  impl.notices.clear();
  if (!impl.examples.asks()) impl.examples.end_step();
  return result;
}

void Observer::forget_rows() { impl_->examples.end_step(); }

bool Observer::lacks_rows() const { return impl_->examples.lacks_rows(); }

bool Observer::asks_for_rows() const { return impl_->examples.asks(); }

bool Observer::establish_rows(const tape::LossTape& tape, const std::vector<at::Tensor>& parameters,
                              int64_t memory, StepObservation* seen) {
  Impl& impl = *impl_;
  bool any = false;
  bool failed = false;
  try {
    const std::vector<tape::RowSource> sources = impl.examples.sources();
    const std::vector<tape::RowsWanted> wanted = impl.examples.wanted_rows();
    const int64_t examples = impl.examples.examples();
    const auto key = tape::structure_key(tape, sources);
    Impl::EstablishedRows& last = impl.established;
    const bool same = key && last.found && last.key == key && last.examples == examples &&
                      last.wanted == wanted && !last.found->chooses();
    if (!same) {
      last = {
          key, wanted, examples,
          std::make_unique<tape::RowExamples>(tape, sources, wanted, examples, parameters, memory)};
    }
    const tape::RowExamples& found = *last.found;
    const double scale = impl.loss_scale * impl.loss_scale;
    for (const ParameterInfo& parameter : impl.model.parameters) {
      ParameterObservation& observed = seen->parameters[parameter.id];
      const std::string before = observed.why_not_per_example;
      const bool exact = impl.examples.resolve(parameter.id, found, &observed);
      any = any || exact;
      failed = failed || (!exact && observed.why_not_per_example != before);
      if (exact && scale != 1) {
        for (at::Tensor& norm : observed.per_example_norm_sq) norm = norm / scale;
      }
      if (observed.why_not_per_example == before) continue;
      auto& notices = seen->notices;
      const auto said = std::find_if(notices.begin(), notices.end(), [&](const auto& notice) {
        return notice.code == kExamplesNotObserved && notice.entity == parameter.id;
      });
      if (said == notices.end()) continue;
      if (exact) {
        notices.erase(said);
      } else {
        said->message = fmt::format("{}: {}", parameter.name, observed.why_not_per_example);
      }
    }
    if (same && failed) last.found.reset();  // Another step may show more.
    if (any) {
      seen->notices.push_back(
          {v1::Event::METHOD, "examples_by_experiment",
           "for some layers, the example of each row was established by experiment: data of "
           "examples were exchanged, and the step's operators called again",
           v1::SCOPE_RUN, 0});
    }
  } catch (const std::exception& error) {
    impl.notices.push_back(
        {v1::Event::FAULT, "observer_fault", error_text(error), v1::SCOPE_RUN, 0});
  }
  impl.examples.end_step();
  return any;
}

}  // namespace tycho
