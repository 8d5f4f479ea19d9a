// ggml's quantiser on the matrices of a bf16 checkpoint, as llama-quantize goes about it: tensor by tensor, bf16 to f32, then
// ggml_quantize_chunk, with THREADS threads each, and the bytes written. What the README compares conversions with.
//
//   g++ -O3 -march=native tests/reference/ggml_race.cpp -o race GGML/libggml-base.so -Wl,-rpath,GGML -lpthread
//   time ./race LIST OUT THREADS
//
// LIST has a line for each matrix: file, byte at which it begins, rows, columns, ggml's number of the type it becomes
// (2 q4_0, 8 q8_0, 12 q4_K, 20 iq4_nl). For the README, of what tests/reference/big_huginn.py makes: the two matrices of the last
// shard (17920 columns as q4_K, 10560 as q8_0) and the first of 15840 rows and 5280 columns in the first shard as iq4_nl.
// GGML is ggml's base library, built with -O3 -march=native -ffp-contract=off.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

extern "C" {
size_t ggml_quantize_chunk(int type, const float *src, void *dst, int64_t start, int64_t nrows, int64_t n_per_row, const float *imatrix);
void ggml_quantize_init(int type);
size_t ggml_row_size(int type, int64_t ne);
}

static void in_parallel(int threads, const std::function<void(int)> &work) {
    std::vector<std::thread> all;
    for (int t = 0; t < threads; t++) all.emplace_back(work, t);
    for (auto &thread : all) thread.join();
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    std::ifstream list(argv[1]);
    FILE *out = fopen(argv[2], "wb");
    const int threads = atoi(argv[3]);
    std::string path;
    int64_t offset, rows, columns;
    int type;
    std::vector<float> values;
    std::vector<char> bytes;
    while (list >> path >> offset >> rows >> columns >> type) {
        const int file = open(path.c_str(), O_RDONLY);
        struct stat status;
        if (file < 0 || fstat(file, &status) != 0) return 1;
        char *map = (char *) mmap(nullptr, status.st_size, PROT_READ, MAP_SHARED, file, 0);
        const uint16_t *stored = (const uint16_t *) (map + offset);
        values.resize(rows * columns);
        bytes.resize(ggml_row_size(type, columns) * rows);
        in_parallel(threads, [&](int t) {
            for (int64_t i = rows * t / threads * columns; i < rows * (t + 1) / threads * columns; i++) {
                const uint32_t bits = (uint32_t) stored[i] << 16;
                memcpy(&values[i], &bits, 4);
            }
        });
        ggml_quantize_init(type);
        // llama-quantize hands out chunks of 32 · 512 values.
        const int64_t chunk = (32 * 512 + columns - 1) / columns;
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t row; (row = next.fetch_add(chunk)) < rows;) {
                const int64_t count = std::min(chunk, rows - row);
                ggml_quantize_chunk(type, values.data(), bytes.data(), row * columns, count, columns, nullptr);
            }
        });
        fwrite(bytes.data(), 1, bytes.size(), out);
        munmap(map, status.st_size);
        close(file);
    }
    fflush(out);
    fsync(fileno(out));
    fclose(out);
}
