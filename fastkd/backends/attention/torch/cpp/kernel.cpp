// What Python calls.

#include "sentence.hpp"

using namespace fastkd;

namespace {

struct Layout {
    int64_t desk = 0;     // floats of a thread's desk
    int64_t shared = 0;   // of the scores of a long sentence
    int64_t private_ = 0;  // of those of a short one

    explicit Layout(const Call& call) {
        for (int64_t n = 0; n < call.count; n++) {
            const int64_t stride = padded(call.keys[n]);
            const int64_t size = Desk::size(call, stride);
            const int64_t scores = scores_size(call.mix, block_rows(call, n), stride);
            int64_t& most = is_long(call, n) ? shared : private_;
            most = scores > most ? scores : most;
            desk = size > desk ? size : desk;
        }
    }
};

int team() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

int place() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace

extern "C" int64_t fastkd_memory(const Call* call) {
    const Layout layout(*call);
    const int64_t private_ = layout.private_ * call->threads;
    return layout.desk * call->threads + (private_ > layout.shared ? private_ : layout.shared);
}

extern "C" void fastkd_alignment(const Call* given) {
    const Call& call = *given;
    const Layout layout(call);
    float* desks = call.memory;
    float* scores = desks + layout.desk * call.threads;
    for (int64_t t = 0; t < call.threads; t++)
        Desk(desks + t * layout.desk, call, 0).scratch.clear(call.mix);
#pragma omp parallel num_threads(call.threads)
    {
        const int64_t thread = place(), threads = team();
        for (int64_t n = 0; n < call.count; n++)
            if (is_long(call, n))
                Sentence(call, n, thread, threads, desks, layout.desk, scores).run();
        // Dealt out to and fro, the longest first: who adds what must not depend on time.
        for (int64_t n = 0; n < call.count; n++) {
            const int64_t turn = n / threads, at = n % threads;
            if (!is_long(call, n) && (turn % 2 ? threads - 1 - at : at) == thread)
                Sentence(call, n, 0, 1, desks + thread * layout.desk, layout.desk,
                         scores + thread * layout.private_)
                    .run();
        }
    }
    if (!call.mix.learn_weight) return;
    const int64_t line = Scratch::fours(call.mix.students);
    for (int64_t j = 0; j < call.mix.teachers; j++)
        for (int64_t h = 0; h < call.mix.students; h++) {
            double total = 0;
            for (int64_t t = 0; t < call.threads; t++) {
                const Desk desk(desks + t * layout.desk, call, 0);
                total += sum(load(desk.scratch.weight_gradient + (j * line + h) * LANES));
            }
            call.weight_gradient[j * call.mix.students + h] += total;
        }
}
