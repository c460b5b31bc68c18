// A generative adversarial network on eight Gaussians in a ring: two networks, two optimizers, two
// sessions. Question: how does one observe two networks that train through each other?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <exception>
#include <iostream>

#include "arguments.h"

namespace nn = torch::nn;

namespace {

constexpr int64_t kNoise = 8;
constexpr double kRadius = 2;
constexpr double kSpread = 0.05;

/// Points of the ring: [count, 2].
torch::Tensor real_points(int64_t count) {
  const auto angle = torch::randint(8, {count}) * (2 * M_PI / 8);
  return torch::stack({angle.cos(), angle.sin()}, 1) * kRadius + torch::randn({count, 2}) * kSpread;
}

}  // namespace

int main(int argc, char** argv) try {
  const auto arguments = tycho::examples::parse_arguments(
      argc, argv, "gan", "Trains a generative adversarial network on points in the plane.", "",
      3000);
  torch::manual_seed(5);
  constexpr int64_t kBatch = 128;

  nn::Sequential generator(nn::Linear(kNoise, 64), nn::ReLU(), nn::Linear(64, 64), nn::ReLU(),
                           nn::Linear(64, 2));
  nn::Sequential discriminator(nn::Linear(2, 64), nn::LeakyReLU(), nn::Linear(64, 64),
                               nn::LeakyReLU(), nn::Linear(64, 1));
  const auto options = torch::optim::AdamOptions(5e-4).betas({0.5, 0.999});
  torch::optim::Adam generator_optimizer(generator->parameters(), options);
  torch::optim::Adam discriminator_optimizer(discriminator->parameters(), options);

  tycho::Session generator_session(*generator, generator_optimizer,  // Tycho 1
                                   tycho::SessionOptions(arguments.run + "/generator"));
  tycho::Session discriminator_session(*discriminator, discriminator_optimizer,
                                       tycho::SessionOptions(arguments.run + "/discriminator"));

  for (int64_t step = 0; step < arguments.steps; ++step) {
    torch::Tensor discriminator_loss;
    {
      const auto quiet = generator_session.pause();  // its forward here is not a step of its own
      const auto real = real_points(kBatch);
      const auto fake = generator->forward(torch::randn({kBatch, kNoise})).detach();
      discriminator_optimizer.zero_grad();
      const auto verdict = discriminator->forward(torch::cat({real, fake}));
      const auto truth = torch::cat({torch::ones({kBatch, 1}), torch::zeros({kBatch, 1})});
      discriminator_loss = torch::binary_cross_entropy_with_logits(verdict, truth);
      discriminator_loss.backward();
      discriminator_optimizer.step();
    }
    discriminator_session.step(discriminator_loss, 2 * kBatch);  // Tycho 2

    torch::Tensor generator_loss;
    {
      const auto quiet = discriminator_session.pause();  // the generator learns through it
      generator_optimizer.zero_grad();
      const auto verdict =
          discriminator->forward(generator->forward(torch::randn({kBatch, kNoise})));
      generator_loss = torch::binary_cross_entropy_with_logits(verdict, torch::ones({kBatch, 1}));
      generator_loss.backward();
      generator_optimizer.step();
    }
    generator_session.step(generator_loss, kBatch);  // Tycho 2

    if (step % 250 == 0) {
      std::cout << "step " << step << "  generator " << generator_loss.item<double>()
                << "  discriminator " << discriminator_loss.item<double>() << "\n";
    }
  }
  generator_session.close();  // Tycho 3
  discriminator_session.close();

  torch::NoGradGuard no_grad;
  const auto radius = generator->forward(torch::randn({2000, kNoise})).norm(2, 1);
  std::cout << "share of generated points near the ring "
            << (radius - kRadius).abs().lt(0.25).to(torch::kFloat64).mean().item<double>()
            << "\nruns " << arguments.run << "/generator and " << arguments.run
            << "/discriminator\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
