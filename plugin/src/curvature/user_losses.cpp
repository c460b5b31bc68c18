#include "curvature/user_losses.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "curvature/convolution_trial.h"
#include "features/probe_pass.h"

namespace tycho {
namespace {

// Of a loss's surfaces these are checked to be repeatable: the first ones, and then now and then.
constexpr int64_t kLossesAlwaysChecked = 2;
constexpr int64_t kLossCheckedEvery = 16;
// An observation takes several batches, each with a surface of its own.
constexpr int64_t kBatchesProvedEvery = 128;

const char* name_of(size_t kind) {
  constexpr const char* names[] = {"probe_loss", "step_loss", "batch_loss"};
  return names[kind];
}

bool wants_features(const Needs& needs) {
  return needs.probe_features || needs.probe_feature_gradients || needs.probe_attention;
}

std::string words_of(const std::string& name) {
  std::string words = "the " + name;
  for (char& letter : words) letter = letter == '_' ? ' ' : letter;
  return words;
}

}  // namespace

UserLosses::UserLosses(const ModelState& model, std::vector<ProbeLossSurface::Parameter> parameters,
                       Say say)
    : model_(model), parameters_(std::move(parameters)), say_(std::move(say)) {}

UserLosses::~UserLosses() = default;

void UserLosses::set_parameters(std::vector<ProbeLossSurface::Parameter> parameters) {
  parameters_ = std::move(parameters);
  operators_tried_ = false;
  no_gradients_.clear();
  pass_memory_ = ProbePassMemory();
  for (Entry& entry : entries_) {
    const int64_t proved_every = entry.method.proved_every;
    entry.method = ProductMethod();
    entry.method.proved_every = proved_every;
    entry.opened = 0;
  }
}

bool UserLosses::set(Kind kind, ProbeLoss loss) {
  if (state_) {
    say_(v1::Event::NOTICE, fmt::format("{}_refused", name_of(kind)),
         fmt::format("{} was given from inside an evaluation: it is not used",
                     words_of(name_of(kind))));
    return false;
  }
  bool legal = static_cast<bool>(loss.loss) && !loss.weights.empty();
  for (const double weight : loss.weights) legal = legal && std::isfinite(weight);
  if (!legal) {
    say_(v1::Event::NOTICE, fmt::format("{}_refused", name_of(kind)),
         fmt::format("{} needs a function and at least one weight, all finite: it is not used",
                     words_of(name_of(kind))));
    return false;
  }
  Entry& entry = entries_[kind];
  entry = Entry();
  entry.loss = std::move(loss);
  entry.given = true;
  if (kind == kBatch) entry.method.proved_every = kBatchesProvedEvery;
  if (!no_gradients_.empty()) {
    entry.method.kind = ProductMethod::kNone;
    entry.method.reason = no_gradients_;
  }
  if (kind == kProbe) pass_memory_ = ProbePassMemory();
  return true;
}

bool UserLosses::set_probe(ProbeLoss loss) {
  const bool taken = set(kProbe, std::move(loss));
  if (taken) probe_from_tape_ = false;
  return taken;
}

bool UserLosses::set_step(std::function<at::Tensor()> loss) {
  step_from_tape_ = false;
  ProbeLoss wrapped;
  if (loss) wrapped.loss = [f = std::move(loss)](const at::Tensor&, int64_t) { return f(); };
  return set(kStep, std::move(wrapped));
}

bool UserLosses::set_probe_tape(ProbeLoss loss) {
  if (!set(kProbe, std::move(loss))) return false;
  probe_from_tape_ = true;
  if (entries_[kStep].given) return true;
  ProbeLoss none;
  none.loss = [](const at::Tensor&, int64_t) { return at::Tensor(); };
  step_from_tape_ = set(kStep, std::move(none));
  entries_[kStep].absent = true;
  return true;
}

void UserLosses::withdraw_tapes() {
  if (std::exchange(probe_from_tape_, false)) entries_[kProbe] = Entry();
  if (std::exchange(step_from_tape_, false)) entries_[kStep] = Entry();
}

void UserLosses::set_step_tape(std::function<at::Tensor()> loss) {
  if (!step_from_tape_) return;
  Entry& entry = entries_[kStep];
  entry.absent = !loss;
  if (loss) entry.loss.loss = [f = std::move(loss)](const at::Tensor&, int64_t) { return f(); };
}

bool UserLosses::set_batches(std::function<at::Tensor(int64_t)> loss) {
  batches_ = std::move(loss);
  ProbeLoss wrapped;
  if (batches_) {
    // next_batch_ moves on when a surface is made, so that a surface sees one batch.
    wrapped.loss = [this](const at::Tensor&, int64_t) { return batches_(next_batch_); };
  }
  return set(kBatch, std::move(wrapped));
}

bool UserLosses::evaluates_probe(const Needs& needs) {
  return needs.loss_surface || wants_features(needs);
}

bool UserLosses::serve(const Needs& needs) const {
  const bool probe = needs.probe_loss || evaluates_probe(needs);
  if (probe && !entries_[kProbe].usable()) return false;
  if (needs.step_surface && !entries_[kStep].usable() && !entries_[kProbe].usable()) return false;
  return !needs.batch_surface || entries_[kBatch].usable() || batch_is_from_tape();
}

std::string UserLosses::missing(const Needs& needs) const {
  if (needs.batch_surface) return "Session::set_batch_loss";
  return needs.step_surface ? "Session::set_step_loss or set_probe_loss"
                            : "Session::set_probe_loss";
}

void UserLosses::try_operators(const std::vector<at::Tensor>& parameters) {
  if (operators_tried_) return;
  no_gradients_ = faulty_convolution(parameters);
  operators_tried_ = true;
  if (no_gradients_.empty()) return;
  say_(v1::Event::NOTICE, "convolutions_are_wrong", no_gradients_);
  for (Entry& entry : entries_) {
    entry.method.kind = ProductMethod::kNone;
    entry.method.reason = no_gradients_;
  }
}

/// Probe and step loss from tapes call the same operators: what was proved of one holds for the
/// other until it is due for a proof of its own.
void UserLosses::share_proof() {
  if (!probe_from_tape_ || !step_from_tape_) return;
  for (const auto& [from, to] : {std::pair(kProbe, kStep), std::pair(kStep, kProbe)}) {
    const ProductMethod& known = entries_[from].method;
    ProductMethod& other = entries_[to].method;
    if (known.kind != ProductMethod::kDoubleBackward || other.kind != ProductMethod::kUndecided)
      continue;
    other = known;
    other.surfaces = 1;
  }
}

LossSurface* UserLosses::open(Kind kind, bool checked) {
  Entry& entry = entries_[kind];
  if (!entry.there()) return nullptr;
  entry.surface = std::make_unique<ProbeLossSurface>(name_of(kind), entry.loss, *state_,
                                                     parameters_, &entry.method);
  try {
    if (checked && (entry.opened < kLossesAlwaysChecked || entry.opened % kLossCheckedEvery == 0)) {
      entry.surface->check_repeatable();
    }
  } catch (const LossError& error) {
    suspend(error);
    return nullptr;
  }
  entry.opened += checked;
  return entry.surface.get();
}

/// The origin of a surface is after the update, so the way back is minus this, exactly.
at::Tensor UserLosses::update_of(const StepView& view, const LossSurface& surface) const {
  std::vector<at::Tensor> parts;
  for (const ProbeLossSurface::Parameter& parameter : parameters_) {
    if (!parameter.tensor.requires_grad()) continue;
    if (parameter.id == LossSurface::kNoParameter) return {};
    const at::Tensor& before = (*view.parameters)[parameter.id].previous_weight;
    if (!before.defined()) return {};
    parts.push_back((parameter.tensor.detach().to(at::kDouble) - before.to(at::kDouble))
                        .reshape({-1})
                        .to(surface.options()));
  }
  return parts.empty() ? at::Tensor() : at::cat(parts);
}

/// The parameters before the update do not depend on the batch that the step then took.
std::function<std::unique_ptr<LossSurface>()> UserLosses::batch_of_step(const StepView& view) {
  return [this, &view, used = false]() mutable -> std::unique_ptr<LossSurface> {
    if (std::exchange(used, true)) return nullptr;
    Entry& entry = entries_[kStep];
    auto surface = std::make_unique<ProbeLossSurface>(name_of(kStep), entry.loss, *state_,
                                                      parameters_, &entry.method);
    const at::Tensor update = update_of(view, *surface);
    if (!update.defined()) return nullptr;
    surface->move(-update);
    return surface;
  };
}

void UserLosses::open(const Needs& needs, torch::optim::Optimizer& optimizer, StepView* view) {
  const bool any_usable = std::any_of(entries_.begin(), entries_.end(),
                                      [](const Entry& entry) { return entry.usable(); });
  if (!any_usable) return;
  std::vector<at::Tensor> tensors;
  for (const ProbeLossSurface::Parameter& parameter : parameters_) {
    tensors.push_back(parameter.tensor);
  }
  try_operators(tensors);
  state_ = std::make_unique<SavedState>(model_, std::move(tensors));
  share_proof();
  // A value that is only recorded may be what it likes.
  const bool curved = needs.loss_surface || needs.step_surface;
  if (curved || needs.probe_loss) view->surface = open(kProbe, curved);
  if (needs.step_surface) view->step_surface = open(kStep, true);
  if (needs.batch_surface && batch_is_from_tape() && entries_[kStep].there()) {
    view->batch_surface = batch_of_step(*view);
  } else if (needs.batch_surface && entries_[kBatch].usable()) {
    view->batch_surface = [this]() -> std::unique_ptr<LossSurface> {
      Entry& entry = entries_[kBatch];
      ++next_batch_;
      return std::make_unique<ProbeLossSurface>(name_of(kBatch), entry.loss, *state_, parameters_,
                                                &entry.method);
    };
  }
  if (wants_features(needs) && layers_ != nullptr && entries_[kProbe].usable()) {
    pass_ = std::make_unique<ProbePass>(entries_[kProbe].loss, *state_, *layers_, parameters_,
                                        batch_dim_, needs, &pass_memory_);
    pass_->refuse_gradients(no_gradients_);
    view->features = pass_.get();
  }
  // What follows reads the parameters, which a loss may have replaced.
  state_->rewind();
  const LossSurface* any = view->surface != nullptr ? view->surface : view->step_surface;
  if (any == nullptr) return;
  if (needs.update) view->update = update_of(*view, *any);
  if (needs.stability) {
    std::vector<at::Tensor> trained;
    for (const ProbeLossSurface::Parameter& parameter : parameters_) {
      if (parameter.tensor.requires_grad()) trained.push_back(parameter.tensor);
    }
    stability_ = stability_of(optimizer, *view->optimizer, *any, trained);
    view->stability = &stability_;
  }
}

void UserLosses::settle(StepView* view) {
  if (state_) {
    state_->move({});
    state_->rewind();
  }
  if (entries_[kProbe].suspended) {
    view->surface = nullptr;
    view->features = nullptr;
  }
  if (entries_[kStep].suspended) view->step_surface = nullptr;
  if (entries_[kBatch].suspended) view->batch_surface = nullptr;
}

void UserLosses::close() {
  const bool whole = !state_ || state_->restore();
  if (pass_) {
    for (ObserverNotice& notice : pass_->take_notices()) notices_.push_back(std::move(notice));
  }
  (void)restore();
  if (!whole) {
    say_(v1::Event::FAULT, "state_not_restored",
         "not everything that the losses may have changed could be restored: parameters, "
         "buffers, training flags or generators may differ from a run without Tycho");
  }
  for (const Kind kind : {kProbe, kStep, kBatch}) say_method(kind);
}

bool UserLosses::restore() noexcept {
  const bool whole = !state_ || state_->restore();
  pass_.reset();
  for (Entry& entry : entries_) entry.surface.reset();
  state_.reset();
  return whole;
}

void UserLosses::say_method(Kind kind) {
  Entry& entry = entries_[kind];
  const ProductMethod& method = entry.method;
  if (!entry.given || method.kind == entry.said) return;
  const bool first = entry.said == ProductMethod::kUndecided;
  entry.said = method.kind;
  const std::string loss = words_of(name_of(kind));
  const std::string code = fmt::format("{}_products{}", name_of(kind), first ? "" : "_changed");
  if (method.kind == ProductMethod::kNone) {
    say_(v1::Event::NOT_OBSERVED, code,
         fmt::format("only values of {} are observed: {}", loss, method.reason));
    return;
  }
  say_(v1::Event::METHOD, code,
       method.kind == ProductMethod::kDoubleBackward
           ? fmt::format("Hessian-vector products of {} are exact, by double backward; they are "
                         "checked against differences of gradients from time to time",
                         loss)
           : fmt::format("Hessian-vector products of {} are finite differences of gradients, with "
                         "a relative error of about {:.0e}: {}",
                         loss, method.error, method.reason));
}

void UserLosses::suspend(const LossError& error) {
  for (size_t kind = 0; kind < kKinds; ++kind) {
    if (error.loss() != name_of(kind) || entries_[kind].suspended) continue;
    entries_[kind].suspended = true;
    // A tape that cannot be replayed is no fault: some executors change their code as they go.
    const bool taped = (kind == kProbe && probe_from_tape_) || (kind == kStep && step_from_tape_);
    if (taped) {
      say_(v1::Event::NOT_OBSERVED, fmt::format("{}_not_replayed", name_of(kind)),
           fmt::format("{} on its tape can no longer be replayed and is not evaluated any more: "
                       "{}. Session::set_{} replaces it",
                       words_of(name_of(kind)), error.what(), name_of(kind)));
      continue;
    }
    say_(v1::Event::FAULT, fmt::format("{}_failed", name_of(kind)),
         fmt::format("{} failed and is not evaluated any more: {}", words_of(name_of(kind)),
                     error.what()));
  }
}

}  // namespace tycho
