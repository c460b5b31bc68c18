#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "live/live_feed.h"
#include "tycho/analyzer/background_judge.h"

namespace tycho {

/// The judge of a session, and who listens to it. Listeners that come before recording begins are
/// kept until it does.
class LiveFindings : public LiveFeed {
 public:
  using Listener = std::function<void(const Finding&)>;

  void add_listener(Listener listener);
  std::vector<Finding> findings() const;
  Verdict verdict(const std::string& law) const;

  void start(Segment segment, trace::BackgroundWriter::Listener to_trace) override;
  bool started() const override { return judge() != nullptr; }
  trace::BackgroundWriter::Listener inlet() const override;
  Counters counters() const override;
  bool on_its_thread() const override;
  double cpu_seconds() const override;
  void close() override;
  void abandon() noexcept override;

 private:
  std::shared_ptr<analyzer::BackgroundJudge> judge() const;

  mutable std::mutex mutex_;
  std::shared_ptr<analyzer::BackgroundJudge> judge_;
  std::vector<Listener> waiting_;
};

/// The laws there are, in the order of a report.
std::vector<std::string> law_names();

}  // namespace tycho
