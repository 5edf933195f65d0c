// Matrix products of one head of one sentence, small enough to stay in the cache.
#pragma once

#include "vectors.hpp"

namespace fastkd {

// A matrix whose element (i, j) is at data[i · row + j · column].
struct Matrix {
    const float* data;
    int64_t row, column;
};

constexpr int HEIGHT = LANES == 16 ? 6 : 4;  // tiles that fill the registers
constexpr int WIDTH = LANES == 16 ? 4 : 2;

// H × (W vectors) of out = scale · left @ right, or added to it. right: rows of contiguous cells.
template <int H, int W>
inline void tile(Matrix left, const float* right, int64_t right_row, int64_t depth, float* out,
                 int64_t out_row, float scale, bool add) {
    vec total[H][W] = {};
    const float* cells = left.data;
    for (int64_t p = 0; p < depth; p++, right += right_row, cells += left.column) {
        vec b[W];
        for (int w = 0; w < W; w++) b[w] = held(right + w * LANES);
        for (int h = 0; h < H; h++)
            for (int w = 0; w < W; w++) total[h][w] += b[w] * cells[h * left.row];
    }
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++) {
            float* place = out + h * out_row + w * LANES;
            vec value = total[h][w] * scale;
            store(place, add ? load(place) + value : value);
        }
}

// The last, lower tile of a column.
template <int H, int W>
inline void lower(Matrix left, const float* right, int64_t right_row, int64_t depth, float* out,
                  int64_t out_row, int64_t height, float scale, bool add) {
    if (height == H) tile<H, W>(left, right, right_row, depth, out, out_row, scale, add);
    if constexpr (H > 1)
        if (height < H)
            lower<H - 1, W>(left, right, right_row, depth, out, out_row, height, scale, add);
}

template <int W>
inline void column(Matrix left, const float* right, int64_t right_row, int64_t depth, float* out,
                   int64_t out_row, int64_t height, float scale, bool add) {
    int64_t i = 0;
    for (; i + HEIGHT <= height; i += HEIGHT) {
        tile<HEIGHT, W>(left, right, right_row, depth, out, out_row, scale, add);
        left.data += HEIGHT * left.row;
        out += HEIGHT * out_row;
    }
    lower<HEIGHT - 1, W>(left, right, right_row, depth, out, out_row, height - i, scale, add);
}

// A matrix in panels of PANEL columns, `panel` apart; its rows lie `row` apart in each.
constexpr int PANEL = WIDTH * LANES;
struct Panels {
    const float* data;
    int64_t row, panel = PANEL;
};

// out (height, width) = scale · left (height, depth) @ right (depth, width), or added to it.
// width is a multiple of LANES.
inline void multiply(Matrix left, Panels right, int64_t depth, float* out, int64_t out_row,
                     int64_t height, int64_t width, float scale, bool add) {
    for (int64_t j = 0; j < width; j += PANEL, right.data += right.panel) {
        const float* cells = right.data;
        float* to = out + j;
        int64_t rest = width - j;
        if (rest >= PANEL) {
            column<WIDTH>(left, cells, right.row, depth, to, out_row, height, scale, add);
            continue;
        }
        if (rest >= PANEL / 2) {
            column<WIDTH / 2>(left, cells, right.row, depth, to, out_row, height, scale, add);
            cells += PANEL / 2;
            to += PANEL / 2;
            rest -= PANEL / 2;
        }
        for (; rest > 0; rest -= LANES, cells += LANES, to += LANES)
            column<1>(left, cells, right.row, depth, to, out_row, height, scale, add);
    }
}

// a and b lane by lane in turn: of their first halves, or with `high` of their second ones.
template <bool HIGH> inline vec interleaved(vec a, vec b) {
    constexpr int from = HIGH ? LANES / 2 : 0;
#if defined(__clang__)
    if constexpr (LANES == 16)
        return __builtin_shufflevector(a, b, from, from + 16, from + 1, from + 17, from + 2,
                                       from + 18, from + 3, from + 19, from + 4, from + 20,
                                       from + 5, from + 21, from + 6, from + 22, from + 7,
                                       from + 23);
    else
        return __builtin_shufflevector(a, b, from, from + 8, from + 1, from + 9, from + 2,
                                       from + 10, from + 3, from + 11);
#else
    ivec order;
    for (int i = 0; i < LANES; i++) order[i] = from + i / 2 + i % 2 * LANES;
    return __builtin_shuffle(a, b, order);
#endif
}

// to: the transpose of from (height, width), (width, padded) in panels `panel` apart; zeros beyond
// `height`. padded and width are multiples of LANES.
inline void transpose(const float* from, int64_t from_row, int64_t height, int64_t width, float* to,
                      int64_t panel, int64_t padded) {
    for (int64_t i = 0; i < padded; i += LANES) {
        float* place = to + i / PANEL * panel + i % PANEL;
        for (int64_t j = 0; j < width; j += LANES) {
            vec now[LANES], next[LANES];
            for (int n = 0; n < LANES; n++)
                now[n] = i + n < height ? load(from + (i + n) * from_row + j) : vec{};
            for (int step = 1; step < LANES; step *= 2) {  // each riffles the rows' two halves
                for (int n = 0; n < LANES / 2; n++) {
                    next[2 * n] = interleaved<false>(now[n], now[n + LANES / 2]);
                    next[2 * n + 1] = interleaved<true>(now[n], now[n + LANES / 2]);
                }
                for (int n = 0; n < LANES; n++) now[n] = next[n];
            }
            for (int n = 0; n < LANES; n++) store(place + (j + n) * PANEL, now[n]);
        }
    }
}

// to (height, width): from, rounded to bfloat16 as autocast would; width is a multiple of LANES.
inline void rounded(const float* from, int64_t from_row, int64_t height, int64_t width, float* to) {
    for (int64_t i = 0; i < height; i++, from += from_row, to += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const vec value = load(from + c);
            const ivec bits = (ivec)value;
            const ivec odd = (bits >> 16) & 1;
            const vec near = (vec)((bits + 0x7fff + odd) & (int32_t)0xffff0000);
            store(to + c, value == value ? near : value);
        }
}

}  // namespace fastkd
