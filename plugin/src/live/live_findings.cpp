#include "live/live_findings.h"

#include <utility>

#include "tycho/analyzer/finding_message.h"
#include "tycho/analyzer/law.h"

namespace tycho {

std::shared_ptr<analyzer::BackgroundJudge> LiveFindings::judge() const {
  const std::lock_guard lock(mutex_);
  return judge_;
}

void LiveFindings::add_listener(Listener listener) {
  {
    const std::lock_guard lock(mutex_);
    if (!judge_) {
      waiting_.push_back(std::move(listener));
      return;
    }
  }
  judge()->add_listener(std::move(listener));
}

std::vector<Finding> LiveFindings::findings() const {
  const auto now = judge();
  return now ? now->findings() : std::vector<Finding>();
}

Verdict LiveFindings::verdict(const std::string& law) const {
  const auto now = judge();
  return now ? now->verdict(law) : Verdict::kNotYet;
}

void LiveFindings::start(Segment segment, trace::BackgroundWriter::Listener to_trace) {
  auto made = std::make_shared<analyzer::BackgroundJudge>(
      analyzer::BackgroundJudge::Segment{std::move(segment.run), std::move(segment.model),
                                         std::move(segment.registry)},
      analyzer::BackgroundJudge::Options());
  if (to_trace) {
    made->add_listener([to_trace = std::move(to_trace)](const Finding& finding) {
      trace::QueuedMessage message;
      message.message = analyzer::to_message(finding);
      to_trace(std::move(message));
    });
  }
  std::vector<Listener> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting.swap(waiting_);
    judge_ = made;
  }
  for (Listener& listener : waiting) made->add_listener(std::move(listener));
}

trace::BackgroundWriter::Listener LiveFindings::inlet() const {
  return [judge = judge()](trace::QueuedMessage message) { judge->push(std::move(message)); };
}

LiveFeed::Counters LiveFindings::counters() const {
  Counters result;
  const auto now = judge();
  if (!now) return result;
  analyzer::BackgroundJudge::Counters counters = now->counters();
  result.steps_left_out = counters.steps_left_out;
  result.listener_exceptions = counters.listener_exceptions;
  result.listener_exception = std::move(counters.listener_exception);
  result.failure = std::move(counters.failure);
  return result;
}

bool LiveFindings::on_its_thread() const {
  const auto now = judge();
  return now && now->on_its_thread();
}

double LiveFindings::cpu_seconds() const {
  const auto now = judge();
  return now ? now->cpu_seconds() : 0;
}

void LiveFindings::close() {
  if (const auto now = judge()) now->close();
  const std::lock_guard lock(mutex_);
  waiting_.clear();
}

void LiveFindings::abandon() noexcept {
  // The lock may have been held by a thread of the parent.
  if (judge_) judge_->abandon();
}

std::vector<std::string> law_names() {
  std::vector<std::string> names;
  for (const auto& law : analyzer::make_laws()) names.push_back(law->description().id);
  return names;
}

}  // namespace tycho
