#include "tape/tape_losses.h"

#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "error_text.h"
#include "tape/tape_proof.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {
namespace {

// Steps that make the probe loss: as many as have this many examples, or labels, together, at most
// kMostChunks. Each chunk costs what a pass over a small network costs whatever the batch.
constexpr int64_t kTerms = 128;
constexpr size_t kMostChunks = 4;
// Steps without a tape through no fault of the loss, after which none is waited for.
constexpr int kMostAttempts = 3;

}  // namespace

TapeLosses::TapeLosses(const ModelState& model, std::vector<ProbeLossSurface::Parameter> parameters,
                       UserLosses* losses, UserLosses::Say say, Options options)
    : model_(model),
      parameters_(std::move(parameters)),
      losses_(losses),
      say_(std::move(say)),
      options_(options) {
  for (const auto& parameter : parameters_) tensors_.push_back(parameter.tensor);
}

TapeLosses::~TapeLosses() = default;

bool TapeLosses::collects() const {
  return options_.enabled && !refused_ && !collected_ && !losses_->has_probe();
}

Needs TapeLosses::needs(const Needs& due) const {
  Needs needs;
  if (!options_.enabled || refused_) return needs;
  if (collects()) needs.gradients = needs.previous_weights = true;
  const bool step = due.step_surface && losses_->step_is_from_tape();
  const bool batch = due.batch_surface && losses_->batch_is_from_tape();
  const bool rows = due.per_example_gradient_norms && rows_wanted_;
  if (step || batch || rows) needs.previous_weights = true;
  return needs;
}

void TapeLosses::begin_step(const Needs& due) {
  recorder_.reset();
  const Needs own = needs(due);
  if (!own.previous_weights) return;
  recorder_ =
      std::make_unique<tape::TapeRecorder>(tensors_, std::move(copied_at_once_), options_.meter);
  copied_at_once_.clear();
}

void TapeLosses::refuse(const std::string& why) {
  if (collects() && !chunks_.empty()) offer_probe_loss();  // Each of them was proved.
  refused_ = true;
  say_(v1::Event::NOTICE, "tape_refused",
       fmt::format("the loss cannot be evaluated again from the operators of {}: {}. {} unless it "
                   "is given with Session::{}",
                   collected_ ? "this step" : "a step", why,
                   collected_ ? "The probe loss replaces the step loss"
                              : "What needs the loss as a function of the parameters (sharpness, "
                                "curvature) is not observed",
                   collected_ ? "set_step_loss" : "set_probe_loss"));
}

bool TapeLosses::visit_begin(SavedState* state, const Step& step) const {
  std::vector<at::Tensor> before;
  for (const auto& parameter : parameters_) {
    if (!parameter.tensor.requires_grad()) continue;
    if (parameter.id == LossSurface::kNoParameter) return false;
    const at::Tensor& weight = (*step.parameters)[parameter.id].previous_weight;
    if (!weight.defined()) return false;
    before.push_back(weight);
  }
  state->begin();
  state->visit(before);
  return true;
}

std::string TapeLosses::prove(const tape::LossTape& tape, const Step& step) const {
  const at::DisableRecordFunctionGuard unobserved;
  SavedState state(model_, tensors_);
  std::string why;
  try {
    if (visit_begin(&state, step)) {
      const double loss = step.loss.defined() ? step.loss.item<double>() : step.value;
      if (collects()) {
        tape::Expected expected;
        expected.loss = loss;
        for (const auto& parameter : parameters_) {
          expected.gradients.push_back(parameter.id == LossSurface::kNoParameter
                                           ? at::Tensor()
                                           : (*step.parameters)[parameter.id].gradient);
        }
        why = tape::disproof(tape, tensors_, expected);
      } else {
        why = tape::disproof_of_value(tape, loss);
      }
      if (why.empty() && step.look) step.look(tape, tensors_, options_.memory);
    } else {
      why = "the parameters before the step are not known";
    }
  } catch (const std::exception& error) {
    why = first_line(error);
  }
  if (!state.restore()) {
    say_(v1::Event::FAULT, "state_not_restored",
         "not everything that a tape may have changed could be restored: parameters, buffers, "
         "training flags or generators may differ from a run without Tycho");
  }
  return why;
}

void TapeLosses::end_step(const Step& step) {
  losses_->set_step_tape({});
  if (!recorder_) return;
  const bool defined = step.loss.defined() && step.loss.numel() == 1;
  tape::Recording recording = recorder_->finish(defined ? step.loss : at::Tensor(), step.value);
  copied_at_once_ = recorder_->take_written_later();
  recorder_.reset();
  if (refused_) return;
  if (!recording.tape) {
    if (!recording.may_come || ++attempts_ >= kMostAttempts) refuse(recording.why_not);
    return;
  }
  const Tape tape = std::move(recording.tape);
  if (bytes_ + tape->bytes() > options_.memory) {
    if (chunks_.empty()) {
      refuse(fmt::format("its batch takes {} MiB, more than tape_memory ({} MiB)",
                         tape->bytes() >> 20, options_.memory >> 20));
    } else if (!collected_) {
      offer_probe_loss();
    }
    return;
  }
  const std::string why = prove(*tape, step);
  if (!why.empty()) return refuse(why);
  if (collects()) collect(tape, step.batch_size);
  if (losses_->step_is_from_tape()) {
    losses_->set_step_tape([tape] { return tape->loss(); });
  }
}

void TapeLosses::collect(Tape tape, int64_t examples) {
  bytes_ += tape->bytes();
  terms_ += std::max(examples, tape->labels().defined() ? tape->labels().numel() : 0);
  chunks_.push_back(std::move(tape));
  examples_.push_back(examples);
  if (terms_ >= kTerms || chunks_.size() == kMostChunks) offer_probe_loss();
}

void TapeLosses::offer_probe_loss() {
  const std::vector<Tape> chunks = chunks_;
  const bool counted =
      std::all_of(examples_.begin(), examples_.end(), [](int64_t number) { return number > 0; });
  const int64_t all = std::accumulate(examples_.begin(), examples_.end(), int64_t{0});
  const auto every = [&](const auto& has) {
    return std::all_of(chunks.begin(), chunks.end(), has);
  };
  ProbeLoss loss;
  loss.weights.clear();
  for (const int64_t number : examples_) {
    const double share = counted ? static_cast<double>(number) / static_cast<double>(all)
                                 : 1 / static_cast<double>(chunks.size());
    loss.weights.push_back(options_.mean_reduction ? share : 1);
  }
  loss.examples = counted ? all : 0;
  loss.keep_graph = chunks.size() == 1;
  if (every([](const Tape& tape) { return tape->has_output(); })) {
    loss.output = [chunks](int64_t chunk) { return chunks[static_cast<size_t>(chunk)]->output(); };
    loss.loss = [chunks](const at::Tensor& output, int64_t chunk) {
      return chunks[static_cast<size_t>(chunk)]->loss(output);
    };
  } else {
    loss.loss = [chunks](const at::Tensor&, int64_t chunk) {
      return chunks[static_cast<size_t>(chunk)]->loss();
    };
  }
  if (every([](const Tape& tape) { return tape->labels().defined(); })) {
    loss.labels = [chunks](int64_t chunk) { return chunks[static_cast<size_t>(chunk)]->labels(); };
  }
  collected_ = true;
  chunks_.clear();
  if (!losses_->set_probe_tape(std::move(loss))) return;
  say_(v1::Event::METHOD, "probe_loss_from_tape",
       fmt::format(
           "the probe loss is that of the first {}{}: the operators of the forward pass "
           "are called again. Loss and gradients were those of the trainer",
           chunks.size() == 1 ? std::string("batch") : fmt::format("{} batches", chunks.size()),
           counted ? fmt::format(", {} examples", all) : ""));
}

}  // namespace tycho
