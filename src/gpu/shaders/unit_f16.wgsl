fn key_unit(row: u32, unit: u32) -> vec4<f32> {
    let at = row + 2u * unit;
    return vec4<f32>(unpack2x16float(keys[at]), unpack2x16float(keys[at + 1u]));
}

fn value_unit(row: u32, unit: u32) -> vec4<f32> {
    let at = row + 2u * unit;
    return vec4<f32>(unpack2x16float(values[at]), unpack2x16float(values[at + 1u]));
}
