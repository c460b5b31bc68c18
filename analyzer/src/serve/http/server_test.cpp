#include "src/serve/server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "src/compare/comparison.h"
#include "tests/support/trace_samples.h"
#include "tycho/trace/run_writer.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

class ServerTest : public ::testing::Test {
 protected:
  void serve(ServerOptions options = {}) {
    options.port = 0;
    std::filesystem::create_directories(scratch_.path("runs"));
    CatalogOptions catalog;
    catalog.look_for_runs = std::chrono::milliseconds(200);
    catalog_ =
        std::make_unique<RunCatalog>(std::vector<std::string>{scratch_.path("runs")}, catalog);
    auto opened = Server::open(options, catalog_.get());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    server_ = std::move(opened).value();
    catalog_->start();
    answering_ = std::thread([this] { server_->run(); });
    client_ = std::make_unique<httplib::Client>("127.0.0.1", server_->port());
    client_->set_read_timeout(40);
    for (int i = 0; i < 200 && !client_->Get("/"); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ~ServerTest() override {
    if (!server_) return;
    catalog_->stop();
    server_->stop();
    answering_.join();
  }

  std::unique_ptr<trace::RunWriter> open_run(const std::string& name) {
    trace::RunWriterOptions options;
    options.directory = scratch_.path("runs/" + name);
    auto writer =
        trace::RunWriter::open(options, sample_run(name), sample_model(2), sample_registry());
    EXPECT_TRUE(writer.ok()) << writer.status().message();
    return std::move(writer).value();
  }
  void write(trace::RunWriter* writer, int64_t from, int64_t to) {
    write_steps(writer, from, to, 2);
    EXPECT_TRUE(writer->flush().ok());
  }
  void write_run(const std::string& name) {
    auto writer = open_run(name);
    write(writer.get(), 0, 20);
    EXPECT_TRUE(writer->close().ok());
  }
  // Waits until the list has the run.
  void wait_for(const std::string& name) {
    uint64_t version = 0;
    const auto end = Clock::now() + std::chrono::seconds(20);
    while (Clock::now() < end) {
      const auto card = catalog_->card(name);
      if (card != nullptr && card->is_read) return;
      version = catalog_->wait_for_change(version, std::chrono::milliseconds(100));
    }
    FAIL() << name << " does not appear";
  }
  int status(const std::string& path, const httplib::Headers& headers = {}) {
    const auto got = client_->Get(path, headers);
    return got ? got->status : -1;
  }
  // Events of a stream until `stop` says so or the time is over.
  void listen(const std::string& path, std::chrono::seconds most,
              const std::function<bool(const json&)>& stop) {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(20);
    std::string text;
    const auto end = Clock::now() + most;
    (void)client.Get(path, [&](const char* data, size_t size) {
      text.append(data, size);
      for (size_t at = text.find("\n\n"); at != std::string::npos; at = text.find("\n\n")) {
        const std::string event = text.substr(0, at);
        text.erase(0, at + 2);
        if (event.rfind("data: ", 0) == 0 && stop(json::parse(event.substr(6)))) return false;
      }
      return Clock::now() < end;
    });
  }

  ScratchDirectory scratch_;
  std::unique_ptr<RunCatalog> catalog_;
  std::unique_ptr<Server> server_;
  std::thread answering_;
  std::unique_ptr<httplib::Client> client_;
};

TEST_F(ServerTest, ShowsTheListARunItsReportAndMetrics) {
  write_run("a");
  write_run("sweep/lr 0.1");
  serve();
  wait_for("a");
  wait_for("sweep/lr 0.1");
  const auto list = client_->Get("/");
  ASSERT_TRUE(list);
  EXPECT_EQ(list->status, 200);
  EXPECT_NE(list->get_header_value("Content-Security-Policy").find("default-src 'none'"),
            std::string::npos);
  EXPECT_EQ(list->get_header_value("X-Content-Type-Options"), "nosniff");
  const auto runs = client_->Get("/api/runs");
  ASSERT_TRUE(runs);
  const json cards = json::parse(runs->body)["runs"];
  ASSERT_EQ(cards.size(), 2u);
  EXPECT_EQ(cards[0]["name"], "a");
  EXPECT_EQ(cards[0]["state"], "finished");
  EXPECT_EQ(cards[0]["step"], 19);
  for (const char* path : {"/run/a", "/run/sweep/lr%200.1", "/report?run=a"}) {
    const auto page = client_->Get(path);
    ASSERT_TRUE(page) << path;
    EXPECT_EQ(page->status, 200) << path;
    EXPECT_NE(page->body.find("Mechanics report"), std::string::npos) << path;
    EXPECT_NE(page->body.find("id=\"data\""), std::string::npos) << path;
  }
  const auto fresh = read_report(scratch_.path("runs/a"), nullptr);
  const auto report = client_->Get("/report?run=a");
  EXPECT_EQ(split_main(report->body), split_main(html_report(fresh.value())));
  const auto object = client_->Get("/api/run?run=a");
  EXPECT_EQ(json::parse(object->body)["run"]["observed_steps"], 20);
  const auto metrics = client_->Get("/metrics");
  EXPECT_NE(metrics->body.find("tycho_run_step{run=\"a\"} 19"), std::string::npos);
  EXPECT_EQ(metrics->get_header_value("Content-Type").rfind("text/plain; version=0.0.4", 0), 0u);
}

TEST_F(ServerTest, ComparesRunsThatAreChosen) {
  write_run("a");
  write_run("sweep/lr 0.1");
  serve();
  wait_for("a");
  wait_for("sweep/lr 0.1");
  const auto page = client_->Get("/compare?run=a&run=sweep%2Flr%200.1&run=a");
  ASSERT_TRUE(page);
  EXPECT_EQ(page->status, 200);
  // That of tycho compare, with a way back.
  const auto compared =
      read_comparison({scratch_.path("runs/a"), scratch_.path("runs/sweep/lr 0.1")}, {}, nullptr);
  ASSERT_TRUE(compared.ok());
  const std::string whole = html_comparison(compared.value());
  const std::string main = whole.substr(whole.find("<main"));
  EXPECT_NE(page->body.find(main), std::string::npos);
  EXPECT_NE(page->body.find("<a href=\"/\">all runs</a>"), std::string::npos);
  for (const char* path : {"/compare", "/compare?run=a", "/compare?run=a&run=a"})
    EXPECT_EQ(status(path), 400) << path;
  for (const char* path : {"/compare?run=a&run=b", "/compare?run=a&run=..", "/compare?run=a&run=",
                           "/compare?run=a&run=../../etc", "/compare?run=a&run=/etc"})
    EXPECT_EQ(status(path), 404) << path;
}

TEST_F(ServerTest, AnswersForNothingButTheRunsItFound) {
  write_run("a");
  write_file(scratch_.path("secret"), "secret");
  write_file(scratch_.path("runs/notes"), "secret");
  std::filesystem::create_directories(scratch_.path("outside"));
  std::filesystem::copy(scratch_.path("runs/a"), scratch_.path("outside/b"));
  std::filesystem::create_directory_symlink(scratch_.path("outside/b"), scratch_.path("runs/b"));
  serve();
  wait_for("a");
  for (const char* path : {"/run/..",
                           "/run/../secret",
                           "/run/a/../../secret",
                           "/run/%2e%2e/secret",
                           "/run/..%2fsecret",
                           "/run//etc/passwd",
                           "/run/%2fetc%2fpasswd",
                           "/run/notes",
                           "/run/b",
                           "/run/a/000000.mcap",
                           "/run/a%00",
                           "/run/.",
                           "/../secret",
                           "/secret",
                           "/report?run=../outside/b",
                           "/report?run=b",
                           "/report",
                           "/api/run?run=/etc/passwd",
                           "/events/run?run=../secret",
                           "/run/",
                           "/nothing"}) {
    const auto got = client_->Get(path);
    ASSERT_TRUE(got) << path;
    EXPECT_TRUE(got->status == 404 || got->status == 400) << path << " " << got->status;
    EXPECT_EQ(got->body.find("secret\n"), std::string::npos) << path;
    EXPECT_EQ(got->body.find("root:"), std::string::npos) << path;
  }
  const auto evil = client_->Get("/run/%3Cimg%20src=x%3E");
  ASSERT_TRUE(evil);
  EXPECT_EQ(evil->body.find("<img"), std::string::npos);
  EXPECT_EQ(status("/run/" + std::string(20000, 'a')), 414);
  // Still there.
  EXPECT_EQ(status("/run/a"), 200);
}

TEST_F(ServerTest, ChangesNothing) {
  write_run("a");
  serve();
  wait_for("a");
  const std::string before = read_file(scratch_.path("runs/a/000000.mcap"));
  const auto expect_refused = [](const httplib::Result& got, const char* method) {
    ASSERT_TRUE(got) << method;
    EXPECT_EQ(got->status, 405) << method;
    EXPECT_EQ(got->get_header_value("Allow"), "GET, HEAD");
  };
  expect_refused(client_->Post("/run/a", "x", "text/plain"), "POST");
  expect_refused(client_->Put("/run/a", "x", "text/plain"), "PUT");
  expect_refused(client_->Patch("/run/a", "x", "text/plain"), "PATCH");
  expect_refused(client_->Delete("/run/a"), "DELETE");
  expect_refused(client_->Options("/run/a"), "OPTIONS");
  const auto head = client_->Head("/run/a");
  ASSERT_TRUE(head);
  EXPECT_EQ(head->status, 200);
  EXPECT_EQ(read_file(scratch_.path("runs/a/000000.mcap")), before);
}

TEST_F(ServerTest, AsksForTheTokenEverywhere) {
  write_run("a");
  ServerOptions options;
  options.token = "abcdefghijklmnop-1234";
  serve(options);
  for (const char* path : {"/", "/run/a", "/metrics", "/api/runs", "/events", "/events/run?run=a",
                           "/report?run=a", "/compare?run=a&run=a", "/nothing"}) {
    EXPECT_EQ(status(path), 401) << path;
    EXPECT_EQ(status(path, {{"Authorization", "Bearer abcdefghijklmnop-1235"}}), 401) << path;
  }
  const httplib::Headers bearer = {{"Authorization", "Bearer " + options.token}};
  EXPECT_EQ(status("/", bearer), 200);
  EXPECT_EQ(status("/metrics", bearer), 200);
  EXPECT_EQ(status("/metrics?token=" + options.token), 200);
  // A browser gets a cookie in its stead, and an address without it.
  const auto redirect =
      client_->Get("//evil.example/x?token=" + options.token, {{"Accept", "text/html,*/*"}});
  ASSERT_TRUE(redirect);
  EXPECT_EQ(redirect->status, 303);
  EXPECT_EQ(redirect->get_header_value("Location"), "/evil.example/x");
  const std::string cookie = redirect->get_header_value("Set-Cookie");
  EXPECT_NE(cookie.find("HttpOnly"), std::string::npos);
  EXPECT_NE(cookie.find("SameSite=Strict"), std::string::npos);
  EXPECT_EQ(status("/", {{"Cookie", cookie.substr(0, cookie.find(';'))}}), 200);
}

TEST_F(ServerTest, AnswersUnderItsOwnNameOnly) {
  serve();
  EXPECT_EQ(status("/", {{"Host", "evil.example"}}), 403);
  EXPECT_EQ(status("/", {{"Host", "localhost:9999"}}), 200);
}

TEST_F(ServerTest, SaysWhyItCannotListen) {
  serve();
  ServerOptions options;
  options.port = server_->port();
  const auto second = Server::open(options, catalog_.get());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("Address already in use"), std::string::npos)
      << second.status().message();
  options.host = "no.such.host.invalid";
  EXPECT_FALSE(Server::open(options, catalog_.get()).ok());
}

TEST_F(ServerTest, TellsABrowserWithinTwoSecondsThatARunHasGrown) {
  serve();
  auto writer = open_run("a");
  write(writer.get(), 0, 20);
  wait_for("a");
  const auto page = client_->Get("/run/a");
  ASSERT_TRUE(page);
  const std::string mark = "\"version\":";
  const size_t at = page->body.rfind(mark);
  ASSERT_NE(at, std::string::npos);
  const uint64_t version = std::strtoull(page->body.c_str() + at + mark.size(), nullptr, 10);
  EXPECT_GT(version, 0u);
  bool grew = false;
  Clock::time_point written = Clock::time_point::max();
  bool has_view = false;
  listen("/events/run?run=a&version=" + std::to_string(version), std::chrono::seconds(20),
         [&](const json& event) {
           if (written == Clock::time_point::max()) {
             write(writer.get(), 20, 60);
             written = Clock::now();
             return false;
           }
           has_view = has_view || event.contains("view") || event.contains("data");
           grew = event.contains("card") && event["card"]["step"] == 59;
           return grew && has_view;
         });
  EXPECT_TRUE(grew);
  EXPECT_TRUE(has_view);
  EXPECT_LT(Clock::now() - written, std::chrono::seconds(2));
  // The list, too: only what has changed.
  size_t events = 0;
  listen("/events", std::chrono::seconds(20), [&](const json& event) {
    if (events++ == 0) {
      EXPECT_TRUE(event["all"].get<bool>());
      auto other = open_run("b");
      write(other.get(), 0, 5);
      EXPECT_TRUE(other->close().ok());
      return false;
    }
    EXPECT_FALSE(event["all"].get<bool>());
    for (const auto& card : event["runs"]) {
      if (card["name"] == "b" && card["state"] == "finished" && card["step"] == 4) return true;
    }
    return events > 20;
  });
  EXPECT_NE(catalog_->card("b"), nullptr);
}

TEST_F(ServerTest, BoundsTheNumberOfStreams) {
  write_run("a");
  ServerOptions options;
  options.most_streams = 1;
  serve(options);
  std::atomic<bool> done{false};
  std::atomic<bool> open{false};
  std::thread stream([&] {
    listen("/events", std::chrono::seconds(30), [&](const json&) {
      open = true;
      while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      return true;
    });
  });
  while (!open) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(status("/events"), 503);
  EXPECT_EQ(status("/run/a"), 200);
  done = true;
  stream.join();
}

TEST_F(ServerTest, AnswersOthersWhileAClientIsSlow) {
  write_run("a");
  serve();
  wait_for("a");
  // They ask for a page and do not read it, or do not even ask.
  std::vector<int> sockets;
  for (int i = 0; i < 20; ++i) {
    const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string text = i % 2 == 0 ? "GET /run/a HTTP/1.1\r\nHost: localhost\r\n\r\n" : "GE";
    (void)!::write(descriptor, text.data(), text.size());
    sockets.push_back(descriptor);
  }
  EXPECT_EQ(status("/run/a"), 200);
  for (const int descriptor : sockets) ::close(descriptor);
}

}  // namespace
}  // namespace tycho::analyzer
