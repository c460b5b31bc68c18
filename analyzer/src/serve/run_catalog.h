#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "src/alerts/alerts.h"
#include "src/follow/followed_run.h"
#include "src/serve/card_index.h"
#include "src/serve/run_card.h"
#include "src/serve/run_page.h"

namespace tycho::analyzer {

struct CatalogOptions {
  std::chrono::milliseconds look_for_runs{2000};
  std::chrono::milliseconds poll_live{500};    ///< a run that is being written
  std::chrono::milliseconds poll_ended{5000};  ///< one that is not: it may be resumed
  /// A run's series are kept so long after somebody looked at it last.
  std::chrono::seconds keep_series{60};
  /// Told of alarms, but for those of runs that have ended before the catalog saw them; nullptr:
  /// nobody is. Outlives the catalog.
  Alerts* alerts = nullptr;
  /// Cards of runs that had ended before the catalog was started; nullptr: none are kept. Outlives
  /// the catalog.
  const CardIndex* index = nullptr;
};

/// The runs below some directories, followed by a thread of its own: a card for each, a page for
/// those that somebody looks at. Runs that are live keep an engine each, those that have ended a
/// card; series are kept of those that are looked at. What is not read yet is read piece by piece,
/// between the live ones, the newest run first. All members may be called from any thread.
class RunCatalog {
 public:
  explicit RunCatalog(std::vector<std::string> roots, CatalogOptions options = {});
  ~RunCatalog();
  RunCatalog(const RunCatalog&) = delete;
  RunCatalog& operator=(const RunCatalog&) = delete;

  void start();
  void stop();

  struct Cards {
    uint64_t version = 0;
    std::vector<std::shared_ptr<const RunCard>> cards;  ///< by name
    bool complete = true;  ///< false: there are more runs than are shown
  };
  /// All there are.
  Cards cards() const;
  /// Nullptr: there is no such run.
  std::shared_ptr<const RunCard> card(const std::string& name) const;
  /// Where the run is; empty: there is no such run.
  std::string directory(const std::string& name) const;
  /// Waits until the version is another one than `version`, or the time is over; returns it.
  uint64_t wait_for_change(uint64_t version, std::chrono::milliseconds most) const;

  /// Tells that somebody looks at the run, and waits for a page that is newer than `version`, or
  /// the end of the time; nullptr: there is none.
  std::shared_ptr<const RunPage> page(const std::string& name, uint64_t version,
                                      std::chrono::milliseconds most);
  bool stopping() const;
  /// Of those that are told of alarms.
  AlertCounters alerts() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry;
  void work();
  void look_for_runs();
  Entry* next(Clock::time_point* when);
  void attend(Entry* entry);
  void read(Entry* entry, bool looked_at, size_t engines);
  void publish(Entry* entry, bool looked_at);
  void give_up(Entry* entry, const std::string& why);
  bool is_looked_at(const Entry& entry) const;

  const std::vector<std::string> roots_;
  const CatalogOptions options_;
  std::thread thread_;
  // Only of the thread.
  Clock::time_point look_again_ = Clock::time_point::min();
  bool looked_once_ = false;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<std::string, std::unique_ptr<Entry>> entries_;  // changed by the thread, under the mutex
  uint64_t version_ = 1;
  bool complete_ = true;
  bool stop_ = false;
  bool wake_ = false;  ///< somebody looks at a run that has no page
};

}  // namespace tycho::analyzer
