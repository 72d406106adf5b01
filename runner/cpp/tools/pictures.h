// The files that arforge-run writes and reads: PNG, PPM, PGM, .npy and .npz, all without compression.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Picture {
  std::int64_t height, width, channels; // 3: colours, 1: lightness
  std::vector<std::uint8_t> pixels;     // (height, width, channels)
};

// Lays out pixels (images, height, width, 3) on white, `across` images a row, each pixel `zoom` times as large.
Picture page_of(const std::vector<std::uint8_t>& pixels, std::int64_t images, std::int64_t height, std::int64_t width,
                std::int64_t across, std::int64_t zoom);

// By the file's name .png, else .ppm. All writers throw std::runtime_error, and leave no half-written file.
void write_picture(const std::string& path, const Picture& picture);

// `kind`: "<i8" or "|u1", as NumPy names types.
std::string npy(const std::string& kind, const std::vector<std::int64_t>& shape, const void* data, std::size_t size);
std::string npz(const std::string& name, const std::string& array);
void write_file(const std::string& path, const std::string& content);

// A binary PPM (P6) or PGM (P5) of 8 bits a channel. Throws std::runtime_error.
Picture read_picture(const std::string& path);
