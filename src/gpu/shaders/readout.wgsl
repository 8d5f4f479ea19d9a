// The statistic of a rule on the read-out (`exit::kl` and those beside it), of the only row. One workgroup.
struct Params {
    vocab: u32,
    // 1: there is no read-out before this one.
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> logits: array<f32>;
// The read-out that was checked before.
@group(0) @binding(4) var<storage, read_write> previous: array<f32>;
// The statistic; then of the read-out checked last: its largest logit, Σ exp(logit − largest), entropy, most likely token.
//
// Distances are made of differences of logits, each from its largest, and of the quotient of the sums: near each other, as they
// are when a rule acts, logarithms of whole sums would leave little of them in f32.
@group(0) @binding(5) var<storage, read_write> readout: array<f32>;

var<workgroup> tops: array<u32, THREADS>;

// The largest logit, and the first place where it stands.
fn top(thread: u32) -> u32 {
    var best = -3.4e38;
    var at = 0u;
    for (var i = thread; i < p.vocab; i += THREADS) {
        if (logits[i] > best) {
            best = logits[i];
            at = i;
        }
    }
    parts[thread] = vec2<f32>(best, 0.0);
    tops[thread] = at;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            let other = parts[thread + half].x;
            if (other > parts[thread].x || (other == parts[thread].x && tops[thread + half] < tops[thread])) {
                parts[thread] = vec2<f32>(other, 0.0);
                tops[thread] = tops[thread + half];
            }
        }
        workgroupBarrier();
    }
    let all = tops[0];
    workgroupBarrier();
    return all;
}

fn before(i: u32) -> f32 {
    return select(previous[i], 0.0, p.first != 0u);
}

// Is a token, so far below the most likely one, part of the tail that is levelled? ln 0.1.
fn tail(below: f32) -> bool {
    return below < -2.302585;
}

// The logarithm of what a token gets before all are divided by their sum.
fn levelled(below: f32, log_sum: f32) -> f32 {
    return select(below - log_sum, -log(f32(p.vocab)), tail(below));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    // The same for all threads: nobody waits in vain.
    if (flow[2] == 0u) {
        return;
    }
    let best = top(thread);
    let largest = logits[best];
    var mine = 0.0;
    for (var i = thread; i < p.vocab; i += THREADS) {
        mine += exp(logits[i] - largest);
    }
    let sum = total(thread, vec2<f32>(mine, 0.0)).x;
    // Before the first read-out all tokens are equally likely.
    let old_largest = select(readout[1], 0.0, p.first != 0u);
    let old_sum = select(readout[2], f32(p.vocab), p.first != 0u);
    let quotient = log(old_sum / sum);
    var statistic = 0.0;
    var entropy = 0.0;
    switch (rule.statistic) {
        case KL: {
            var mine = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let old = before(i) - old_largest;
                mine += exp(old) * (old - (logits[i] - largest));
            }
            statistic = total(thread, vec2<f32>(mine, 0.0)).x / old_sum - quotient;
        }
        case MIN_P_KL: {
            let old_log = log(old_sum);
            let new_log = log(sum);
            var mine = vec2<f32>(0.0);
            for (var i = thread; i < p.vocab; i += THREADS) {
                mine += exp(vec2<f32>(levelled(before(i) - old_largest, old_log), levelled(logits[i] - largest, new_log)));
            }
            let sums = total(thread, mine);
            var distance = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let old = before(i) - old_largest;
                let now = logits[i] - largest;
                var apart = old - now - quotient;
                if (tail(old) || tail(now)) {
                    apart = levelled(old, old_log) - levelled(now, new_log);
                }
                distance += exp(levelled(old, old_log)) * apart;
            }
            statistic = total(thread, vec2<f32>(distance, 0.0)).x / sums.x - log(sums.x / sums.y);
        }
        case ENTROPY: {
            var mine = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let probability = exp(logits[i] - largest) / sum;
                mine -= probability * log(probability + 1e-10);
            }
            entropy = total(thread, vec2<f32>(mine, 0.0)).x;
            statistic = abs(entropy - select(readout[3], 100.0, p.first != 0u));
        }
        default: {
            let same = p.first == 0u && bitcast<u32>(readout[4]) == best;
            statistic = select(1.0, 0.0, same);
        }
    }
    workgroupBarrier();
    storageBarrier();
    for (var i = thread; i < p.vocab; i += THREADS) {
        previous[i] = logits[i];
    }
    if (thread == 0u) {
        readout[0] = statistic;
        readout[1] = largest;
        readout[2] = sum;
        readout[3] = entropy;
        readout[4] = bitcast<f32>(best);
    }
}
