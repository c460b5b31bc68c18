#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "live/live_findings.h"
#include "session/session_impl.h"

namespace tycho {

LiveFindings& Session::Impl::follow() {
  if (findings != nullptr) return *findings;
  auto made = std::make_unique<LiveFindings>();
  findings = made.get();
  live = std::move(made);
  if (trace->begun()) {
    start_live(true);
  } else {
    trace->on_begin([this] { start_live(false); });
  }
  return *findings;
}

void Session::Impl::start_live(bool late) noexcept {
  try {
    LiveFeed::Segment segment;
    segment.run = run_description();
    segment.model = facts.description;
    segment.registry = registry;
    live->start(std::move(segment), trace->inlet());
    const trace::BackgroundWriter::Listener inlet = live->inlet();
    if (late) {
      const auto hand_over = [&](auto message) {
        trace::QueuedMessage queued;
        queued.message = std::move(message);
        inlet(std::move(queued));
      };
      if (settings.group_size() > 0) hand_over(settings);
      v1::ModelStructure structure;
      if (!written_structure.empty() && structure.ParseFromString(written_structure))
        hand_over(structure);
      trace->for_each_event(hand_over);
    }
    trace->set_listener(inlet);
  } catch (...) {
    // Memory or threads are out; to say so may fail too.
    std::fprintf(stderr, "tycho: live verdicts are not available\n");
  }
}

void Session::on_finding(std::function<void(const Finding&)> listener) {
  if (!impl_ || !listener) return;
  impl_->protect([&] {
    if (impl_->usable()) impl_->follow().add_listener(std::move(listener));
  });
}

std::vector<Finding> Session::findings() {
  std::vector<Finding> result;
  if (!impl_ || fork_generation().load(std::memory_order_relaxed) != impl_->fork_of_birth)
    return result;
  try {
    if (impl_->findings != nullptr) return impl_->findings->findings();
    impl_->protect([&] {
      if (impl_->usable()) result = impl_->follow().findings();
    });
  } catch (const std::exception&) {
    result.clear();  // Memory is out.
  }
  return result;
}

Verdict Session::verdict(const std::string& law) {
  if (!impl_ || fork_generation().load(std::memory_order_relaxed) != impl_->fork_of_birth)
    return Verdict::kNotYet;
  try {
    static const std::vector<std::string> names = law_names();
    if (std::find(names.begin(), names.end(), law) == names.end()) {
      impl_->protect([&] {
        if (impl_->usable())
          impl_->notice("no_such_law",
                        fmt::format("there is no law \"{}\": its verdict is NOT_YET. `tycho laws` "
                                    "names them",
                                    law));
      });
      return Verdict::kNotYet;
    }
    if (impl_->findings == nullptr) {
      impl_->protect([&] {
        if (impl_->usable()) (void)impl_->follow();
      });
    }
    if (impl_->findings != nullptr) return impl_->findings->verdict(law);
  } catch (const std::exception&) {
    // Memory is out.
  }
  return Verdict::kNotYet;
}

}  // namespace tycho
